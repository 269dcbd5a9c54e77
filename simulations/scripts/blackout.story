# Power goes everywhere at once; everything that was acknowledged is there when it is back.
nodes 3
settle
create shop at n3
describe shop as open at n2
acquire k by ann at n1 for 60
cut-power n1
cut-power n2
cut-power n3
wait 2
start n1
start n2
start n3
settle
look shop at n3
acquire k by bob at n2
renew k by ann at n3 for 60
run shop at n2
