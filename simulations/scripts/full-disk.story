# A full disk stops no node and loses nothing; once there is room, all is as before.
nodes 3
settle
fill-disk leader
acquire k by ann at follower for 60
wait 1
acquire k by bob at follower for 60
acquire other by bob at leader for 60
free-disk n1
free-disk n2
free-disk n3
wait 1
renew k by ann at follower for 60
acquire other by bob at n2 for 60
