# A leader that is heard by nobody gives way; one that hears nobody does too.
nodes 3
settle
mute leader
elect
acquire k by ann at leader
heal
settle
deafen leader
elect
acquire k by bob at leader
heal
settle
