# Who waits for a lock gets it in turn, also under another leader.
nodes 3
settle
acquire k by ann at leader for 60
meanwhile acquire k by bob at follower for 60 waiting 20
wait 0.5
meanwhile acquire k by cleo at follower for 60 waiting 4
wait 0.5
kill leader
elect
wait 2
acquire k by dora at leader
release k by ann at leader
wait 0.5
acquire k by dora at leader
answers
release k by bob at leader
acquire k by dora at leader
