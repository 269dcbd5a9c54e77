# A leader that nobody hears for a while is followed by another one, and follows it when it is back.
nodes 3
settle
acquire k by ann at leader for 60
pause leader
elect
acquire k by bob at leader
resume n1
resume n2
resume n3
settle
release k by ann at follower
