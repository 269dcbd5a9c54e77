# A tenant whose folder is an older copy is out of service as well: the log knows that its files held more.
# What the copy lacks is not 'not found', and is there again with the folder as it was.
nodes 1
settle
create shop at n1
create cafe at n1
run shop at n1
stop n1
copy shop of n1 as early
start n1
settle
run shop at n1
stop n1
copy shop of n1 as whole
put-back early
start n1
settle
look shop at n1
runs shop at n1
run shop at n1
run cafe at n1
put-back whole
start n1
settle
runs shop at n1
run shop at n1
