# A full disk stops no node and loses nothing: a leader without room gives way, and the others go on.
nodes 3
settle
fill-disk leader
acquire k by ann at follower for 60
wait 2
elect
acquire k by bob at follower for 60
acquire other by bob at leader for 60
free-disk n1
free-disk n2
free-disk n3
settle
renew k by ann at n1 for 60
