# A tenant whose folder is gone is out of service, with the reason, and alone: nothing of it is not found.
# With the folder as it was it goes on.
nodes 1
settle
create shop at n1
create cafe at n1
run shop at n1
run cafe at n1
stop n1
copy shop of n1 as whole
lose shop of n1
start n1
settle
look shop at n1
runs shop at n1
run shop at n1
runs cafe at n1
run cafe at n1
put-back whole
start n1
settle
runs shop at n1
run shop at n1
runs cafe at n1
