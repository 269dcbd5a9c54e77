//! Disks that are lost, rot or grow old, nodes that leave, and the operator who starts them with an
//! empty disk.
//!
//! A node whose disk is gone starts again at the same address with nothing, and joins anew. Its old
//! self is a dead member until the cluster has given it up. A node that was asked to leave ends by
//! itself when it is no member any more, and joins anew as well. There is one such node at a time,
//! and the next only once all nodes vote again. A node is spared where its groups have no quorum without it:
//! nobody could give back what it lost.
//!
//! Bits rot where damage has to be noticed: in the log before its last batch (damage to the last one
//! cannot be told from a torn write), and in the identity. A node without its log, or with a rotten one,
//! has to go on as another member by itself; one without its control plane's file has to get that from
//! the others. Nobody helps either of them.

use std::rc::Rc;

use rand::Rng as _;
use shiioo_storage::disk::{DiskCopy, OpenMode, SimDisk};
use shiioo_storage::witnessed_log_bytes;

use super::copies::{Copied, Older};
use crate::checks::Checked;
use crate::checks::lost_data::{Lack, refused};
use crate::env::trace;
use crate::world::{Fault, World, files};

/// How often a node whose disk rots is killed at once; else it goes on until it ends anyhow.
const KILLED: f64 = 0.5;
/// Where the identity is. Damaged, it may still read the same: a letter of an id became large.
const IDENTITY: &str = "identity/node.json";

/// Where the replicated log is.
pub(in crate::world) const LOG: &str = "log";
/// Where the control plane's file is.
const SYSTEM: &str = "system.redb";

/// What a node says whose disk or log is an older copy: where its leader knows that, and where it is
/// alone with files that do.
const OLDER: [&str; 2] =
    ["lacks entries that it had acknowledged", "the log is a copy made before"];

/// What a node says of a file that is not as it was written.
const DAMAGED: &str = "damaged";
/// What a node says that was removed from its cluster.
const REMOVED: &str = "what it has on disk lets it in nowhere";

/// A node that is to lose its disk, or has lost it.
#[derive(Debug, Clone)]
pub(in crate::world) struct Loss {
    pub(in crate::world) at: usize,
    pub(in crate::world) stage: Stage,
}

#[derive(Debug, Clone)]
pub(in crate::world) enum Stage {
    /// Something rots, and was not noticed yet.
    Rots(Rot),
    /// The log is gone, and the node has to become another member.
    LacksLog(Lost),
    /// The control plane's file is gone since that many lives began, and the next one has to get it.
    LacksSystem(u64),
    /// A copy of its disk is to be put back.
    Copied(Copied),
    /// An older copy of its disk was put back.
    Older(Older),
    /// It was asked to leave.
    Leaves,
    /// It starts with an empty disk, until it votes.
    Joins,
}

/// What is gone, and who had it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::world) struct Lost {
    /// How many lives had begun before.
    life: u64,
    /// Who lived there.
    id: String,
}

/// A bit that is another, on a disk that was whole before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::world) struct Rot {
    path: String,
    offset: u64,
    /// The life in which it flipped: the next one reads it.
    life: u64,
    /// Who lived there.
    id: String,
}

impl Rot {
    /// Whether that is what a node says.
    fn is_named_in(&self, why: &str) -> bool {
        why.contains(&self.path) && (why.contains(DAMAGED) || self.is_of_identity())
    }

    /// Whether nobody can give back what rots. A node may also say of its identity that it is of another
    /// version: that is a byte like any other.
    fn is_of_identity(&self) -> bool {
        self.path == IDENTITY
    }
}

impl World {
    /// Whether the cluster can do without what is on this disk: all vote, in every group, and nobody
    /// else has lost his. The first node founds the cluster, and would found another.
    pub(in crate::world) fn can_spare_disk(&self, at: usize) -> bool {
        let is_whole = self.loss.is_none() && !self.lacks_folder();
        is_whole && at > 0 && self.has_quorum_without(at) && self.is_full()
    }

    /// Whether the groups of a node's region keep a quorum without it: replicas of tenants live on the
    /// nodes of their region, and one of two cannot take the place of its own lost log.
    fn has_quorum_without(&self, at: usize) -> bool {
        let regions = self.board.regions.len();
        (0..self.seats.len()).filter(|other| other % regions == at % regions).count() > 2
    }

    /// Whether all run, and vote in every group that they should.
    pub(in crate::world) fn is_full(&self) -> bool {
        let is_ready = self.seats.iter().all(|seat| seat.is_up() && seat.host.is_ready());
        self.board.all_vote.get() && is_ready
    }

    /// Whether the cluster can do without what a disk remembers, too: no tenants are there. Of a tenant
    /// group nobody looks whether its leader would notice an older copy.
    pub(in crate::world) fn can_do_without(&self, at: usize) -> bool {
        let keeps_tenants = self.board.keeps_tenants.borrow();
        self.is_full()
            && !keeps_tenants.is_empty()
            && !keeps_tenants.contains(&self.seats[at].host.id())
    }

    /// Takes a node's disk away, where it can be spared.
    pub(in crate::world) fn take_disk(&mut self, at: usize) {
        if self.can_spare_disk(at) {
            self.lose_disk(at);
        }
    }

    /// Has a client ask for a node to leave, where it can be spared.
    pub(in crate::world) fn ask_to_leave(&mut self, at: usize) {
        if self.can_spare_disk(at) {
            let id = self.seats[at].host.id();
            trace::event(self.seats[at].host.name(), "fault", format_args!("it is to leave"), &[]);
            self.board.stays.set(false);
            self.board.to_leave.replace(Some(id));
            self.loss = Some(Loss { at, stage: Stage::Leaves });
        }
    }

    fn lose_disk(&mut self, at: usize) {
        self.count(Fault::LostDisk);
        self.board.lost_disks.set(self.board.lost_disks.get() + 1);
        self.replace_disk(at);
    }

    fn replace_disk(&mut self, at: usize) {
        self.seats[at].host.lose_disk();
        self.terms.forget(self.seats[at].host.name());
        self.loss = Some(Loss { at, stage: Stage::Joins });
        self.board.all_vote.set(false);
        self.bring_down(at, "its disk is another, and empty");
    }

    /// Takes the replicated log of a node away and leaves the rest, where that can be spared.
    pub(in crate::world) fn take_log(&mut self, at: usize) {
        if !self.can_spare_disk(at) {
            return;
        }
        let host = Rc::clone(&self.seats[at].host);
        host.put_back(&DiskCopy::nothing(LOG));
        trace::event(host.name(), "fault", format_args!("its log is gone"), &[]);
        let lost = Lost { life: host.starts(), id: host.id() };
        self.loss = Some(Loss { at, stage: Stage::LacksLog(lost) });
        self.bring_down(at, "power is gone, and with it the log");
    }

    /// Takes the control plane's file of a node away, where the others have what was in it.
    pub(in crate::world) fn take_system(&mut self, at: usize) {
        let is_whole = self.loss.is_none() && !self.lacks_folder();
        if !is_whole || !self.has_quorum_without(at) || !self.is_full() {
            return;
        }
        let host = Rc::clone(&self.seats[at].host);
        host.put_back(&DiskCopy::nothing(SYSTEM));
        trace::event(host.name(), "fault", format_args!("its {SYSTEM} is gone"), &[]);
        self.loss = Some(Loss { at, stage: Stage::LacksSystem(host.starts()) });
        self.bring_down(at, "power is gone, and with it the control plane's file");
    }

    /// Flips a bit of what is durable, where the disk can be spared.
    pub(in crate::world) fn rot(&mut self, at: usize) {
        if !self.can_spare_disk(at) {
            return;
        }
        let host = Rc::clone(&self.seats[at].host);
        let places = checked_places(&host.disk);
        let all: u64 = places.iter().map(|(_, len)| len).sum();
        let mut offset = self.rng.random_range(0..all.max(1));
        let bit = self.rng.random_range(0..8);
        for (path, len) in places {
            if offset < len {
                trace::event(
                    host.name(),
                    "fault",
                    format_args!("bit {bit} of byte {offset} of {path} rots"),
                    &[],
                );
                host.disk.flip_bit(&path, offset, bit);
                let rot = Rot { path, offset, life: host.starts(), id: host.id() };
                self.loss = Some(Loss { at, stage: Stage::Rots(rot) });
                break;
            }
            offset -= len;
        }
        if self.rng.random_bool(KILLED) {
            self.kill(at);
        }
    }

    /// Gives a node an empty disk that ended for this reason, if it is that it has noticed what rots,
    /// or has left. Tells whether it is.
    pub(in crate::world) fn is_lost(&mut self, at: usize, why: &str) -> bool {
        match self.loss.as_ref().filter(|loss| loss.at == at).map(|loss| &loss.stage) {
            Some(Stage::Rots(rot)) if rot.is_named_in(why) => {
                if rot.is_of_identity() {
                    self.count(Fault::BitRot);
                    self.lose_disk(at);
                } else {
                    // It has met the damage while it ran: the next life has to do without the log.
                    self.bring_down(at, "it ended because its log rots");
                }
                true
            }
            Some(Stage::Older(older)) if OLDER.iter().any(|says| why.contains(says)) => {
                self.count(older.fault);
                self.lose_disk(at);
                true
            }
            Some(Stage::Leaves) if why.contains(REMOVED) => {
                self.count(Fault::Leave);
                self.replace_disk(at);
                true
            }
            _ => false,
        }
    }

    /// Nobody serves from a disk that lacks something, in a life that began on that disk, but as another
    /// member, or once what it lacks is there again.
    pub(in crate::world) fn check_losses(&mut self) -> Checked {
        let Some(Loss { at, stage }) = &self.loss else { return Ok(()) };
        let at = *at;
        let host = Rc::clone(&self.seats[at].host);
        let serves_since = |life: u64| host.starts() > life && host.is_ready();
        if !host.is_ready() {
            // What it becomes knows no terms yet.
            self.terms.forget(host.name());
        }
        match stage {
            Stage::LacksLog(lost) if serves_since(lost.life) => {
                refused(host.name(), &Lack::Log, host.is_called(&lost.id))?;
                self.is_replaced(at, Fault::LostLog);
                Ok(())
            }
            Stage::LacksSystem(life) if serves_since(*life) => {
                self.count(Fault::LostSystem);
                self.loss = None;
                Ok(())
            }
            Stage::Rots(rot) if !rot.is_of_identity() && !host.is_called(&rot.id) => {
                if serves_since(rot.life) {
                    self.is_replaced(at, Fault::BitRot);
                }
                Ok(())
            }
            Stage::Older(_) => self.check_copy(),
            Stage::Rots(rot) if serves_since(rot.life) => {
                let is_there = host.disk.fork().mount().open(&rot.path, OpenMode::Existing).is_ok();
                let is_as_it_was = rot.path == IDENTITY && rot.id == host.id();
                let lack = Lack::Byte { path: rot.path.clone(), offset: rot.offset };
                refused(host.name(), &lack, is_there && !is_as_it_was)?;
                self.loss = None;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Takes note that a node goes on as another member. Its old self is one that has died, until the
    /// cluster has given it up.
    fn is_replaced(&mut self, at: usize, fault: Fault) {
        self.count(fault);
        let name = self.seats[at].host.name();
        trace::event(name, "fault", format_args!("it goes on as another member"), &[]);
        self.board.lost_disks.set(self.board.lost_disks.get() + 1);
        self.board.all_vote.set(false);
        self.loss = Some(Loss { at, stage: Stage::Joins });
    }

    /// Forgets the last loss once it is made good, or did not come to be.
    pub(in crate::world) fn make_good(&mut self) {
        let is_over = match self.loss.as_ref().map(|loss| &loss.stage) {
            Some(Stage::Joins) => self.board.all_vote.get(),
            Some(Stage::Leaves) => self.board.stays.get(),
            Some(_) | None => false,
        };
        if is_over {
            self.loss = None;
        }
    }

    /// Nothing more is lost: who lives on a disk that rots finds out now, by starting again, and who
    /// was to leave and was not asked yet stays.
    pub(in crate::world) fn end_losses(&mut self) {
        match self.loss {
            Some(Loss { at, stage: Stage::Rots(_) }) => self.kill(at),
            Some(Loss { stage: Stage::Leaves, .. }) if self.board.to_leave.take().is_some() => {
                self.loss = None;
            }
            Some(Loss { stage: Stage::Copied(_), .. }) => self.loss = None,
            _ => {}
        }
    }
}

/// The files that are protected by checksums, and how much of each.
fn checked_places(disk: &SimDisk) -> Vec<(String, u64)> {
    let places = files::walk(&*disk.fork().mount(), "").into_iter().map(|(path, len)| {
        let len = match path.split('/').next() {
            _ if path == IDENTITY => len,
            Some(LOG) => witnessed_log_bytes(disk, &path),
            // Also what a node that became another member has moved aside.
            _ => 0,
        };
        (path, len)
    });
    places.filter(|(_, len)| *len > 0).collect()
}
