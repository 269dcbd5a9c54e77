# Where a majority of disks is full nothing is written and nobody leads; once there is room, all is as
# before.
nodes 3
settle
create shop at n1
acquire k by ann at follower for 60
fill-disk n1
fill-disk n2
fill-disk n3
acquire k by bob at follower for 60
wait 1
acquire other by bob at leader for 60
look shop at n3
free-disk n1
free-disk n2
free-disk n3
settle
acquire k by bob at follower for 60
renew k by ann at n1 for 60
