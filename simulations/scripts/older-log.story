# A member on an older copy of its log, and newer files beside it, is refused by the leader that saw it acknowledge more: it ends,
# and with an empty disk it joins anew once the cluster has given up the member that it was.
nodes 3
settle
copy log of n3 as early
create shop at n1
wait 1
put-back early
start n3
wait 5
ask n3
look shop at n2
start n3
wait 38
wait 38
settle
look shop at n3
