# Five nodes in two parts: the larger one goes on, the smaller one refuses.
nodes 5
settle
acquire k by ann at n5 for 60
part n1 n2 | n3 n4 n5
elect
acquire k by bob at n4
renew k by ann at n4 for 60
acquire other by bob at n1
ask n1
heal
settle
release k by ann at n1
