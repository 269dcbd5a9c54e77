# What is not promised: nobody notices an older copy of a disk once the leader is gone that knew of it.
# With a member that was behind it makes a majority, and an acknowledged tenant is lost.
nodes 3
settle
copy disk of n3 as early
isolate n2
create shop at n1
look shop at n3
put-back early
cut-power n1
heal
start n3
elect
look shop at n3
start n1
wait 5
settle
look shop at n1
