# A lock ends when its time is over, not before: a new leader gives every term its whole time again.
nodes 3
settle
acquire k by ann at follower for 4
wait 2
kill leader
elect
acquire k by bob at follower
wait 3
acquire k by bob at follower
wait 2
acquire k by bob at follower
