# A lone node whose log is an older copy than the files beside it does not start, and says so. With the
# whole directory as it was it goes on.
nodes 1
settle
copy log of n1 as early
create shop at n1
run shop at n1
stop n1
copy disk of n1 as whole
put-back early
start n1
wait 5
ask n1
put-back whole
start n1
settle
runs shop at n1
