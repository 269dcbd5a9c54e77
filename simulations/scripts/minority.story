# Without a majority nothing is promised and nothing changes; with one again, all is as it was.
nodes 3
settle
create shop at n1
acquire k by ann at n2 for 60
kill n2
kill n3
acquire k by bob at n1
ask n1
start n2
elect
acquire k by bob at n2
look shop at n2
start n3
settle
look shop at n3
release k by ann at n3
acquire k by bob at n3
