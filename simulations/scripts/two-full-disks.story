# A leader without room stays where the others could not elect another one: reads go on.
nodes 3
settle
acquire k by ann at n1 for 60
create shop at n1
fill-disk n1
fill-disk n2
acquire k by bob at n3
wait 3
acquire other by bob at n3
look shop at n3
ask n3
free-disk n1
free-disk n2
wait 1
elect
acquire other by bob at n3
look shop at n2
