# Wall clocks that are wrong by years shorten no lock and start no election.
nodes 3
settle
acquire k by ann at n2 for 60
clock n1 100000000
clock n2 -100000000
ask n3
acquire k by bob at n1
renew k by ann at n3 for 60
clock n3 500000000
acquire k by bob at n3
settle
