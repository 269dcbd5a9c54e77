# A leader that is cut off leads no longer, and what it granted stays granted.
nodes 3
settle
acquire k by ann at leader for 30
isolate leader
elect
acquire k by bob at leader
ask n1
ask n2
ask n3
renew k by ann at follower for 30
heal
settle
ask n1
acquire k by bob at n1
