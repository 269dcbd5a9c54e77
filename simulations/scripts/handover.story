# A leader that is stopped hands over first; one that is asked to step down does.
nodes 3
settle
step-down follower
elect
acquire k by ann at follower for 60
stop leader
elect
renew k by ann at leader for 60
start n1
start n2
start n3
settle
