//! Older copies of a member's disk, or of its log alone, that are put back while the member is down.
//!
//! The leader remembers what a member has acknowledged to it in its term, and refuses a member that has
//! less. Nobody else remembers that, and the member has forgotten how it voted since. So this much is
//! promised, and provoked here:
//! - another node leads, all follow it, and it has seen the member acknowledge more than the copy has;
//! - nothing else happens until the member has met it: no other fault, no step-down on request.
//!
//! What can come of a copy whose leader is lost first tells the story `older-copy-unseen`.

use std::rc::Rc;
use std::time::Duration;

use rand::Rng as _;
use shiioo_actors::domain::ids::GroupId;
use shiioo_storage::disk::{DiskCopy, SimDisk};
use shiioo_storage::inspect;

use super::losses::{LOG, Loss, Stage};
use crate::checks::Checked;
use crate::checks::lost_data::{Lack, refused};
use crate::env::trace;
use crate::world::{Fault, World};

/// A copy is put back after so long, ms.
const AGE_MS_MIN: u64 = 500;
const AGE_MS_MAX: u64 = 6000;
/// How much longer the world waits for a moment in which it can be.
const WAIT_MAX: Duration = Duration::from_secs(8);

/// A copy that is to be put back.
#[derive(Debug, Clone)]
pub(in crate::world) struct Copied {
    fault: Fault,
    copy: DiskCopy,
    /// Index of the last entry of the system group in it.
    held: u64,
    due: Duration,
}

/// An older copy that was put back.
#[derive(Debug, Clone)]
pub(in crate::world) struct Older {
    pub(in crate::world) fault: Fault,
    /// How many lives had begun before.
    life: u64,
    held: u64,
    /// Who knows more, if anybody does.
    known: Option<Known>,
}

/// What a leader has seen a member acknowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    leader: usize,
    term: u64,
    acknowledged: u64,
}

impl World {
    /// Copies the disk of a node, or its log, to put the copy back later, where that can be spared.
    pub(in crate::world) fn copy_disk(&mut self, at: usize, fault: Fault) {
        if !self.can_spare_disk(at) {
            return;
        }
        let host = &self.seats[at].host;
        let copy = host.disk.copy(if fault == Fault::OlderLog { LOG } else { "" });
        let held = last_entry(&host.disk);
        trace::event(host.name(), "fault", format_args!("copied up to entry {held}"), &[]);
        let age_ms = self.rng.random_range(AGE_MS_MIN..=AGE_MS_MAX);
        let due = self.sim.elapsed() + Duration::from_millis(age_ms);
        self.loss = Some(Loss { at, stage: Stage::Copied(Copied { fault, copy, held, due }) });
    }

    /// Puts a copy back whose time has come, as soon as it will be noticed; forgets it if that moment
    /// does not come.
    pub(in crate::world) fn put_copy_back(&mut self, now: Duration) {
        let Some(Loss { at, stage: Stage::Copied(copied) }) = &self.loss else { return };
        let at = *at;
        if now < copied.due {
            return;
        }
        let is_known = self.known_of(at).is_some_and(|known| known.acknowledged > copied.held);
        let is_quiet = self.schedule.is_quiet() && self.folder.is_none();
        let may_be = is_known && is_quiet && self.can_do_without(at);
        if !may_be && now < copied.due + WAIT_MAX {
            return;
        }
        if let Some(Loss { stage: Stage::Copied(copied), .. }) = self.loss.take()
            && may_be
        {
            self.seats.iter().for_each(|seat| seat.host.disk.cut_power_after(u64::MAX));
            self.put_back(at, &copied.copy, copied.fault);
        }
    }

    /// Puts a copy of a node's disk or log back, after a power cut.
    pub(crate) fn put_back(&mut self, at: usize, copy: &DiskCopy, fault: Fault) {
        let known = self.known_of(at);
        let host = Rc::clone(&self.seats[at].host);
        host.put_back(copy);
        // The vote in a copy is older as well.
        self.terms.forget(host.name());
        let held = last_entry(&host.disk);
        let known = known.filter(|known| known.acknowledged > held);
        trace::event(
            host.name(),
            "fault",
            format_args!("older up to entry {held}, {known:?}"),
            &[],
        );
        let older = Older { fault, life: host.starts(), held, known };
        self.loss = Some(Loss { at, stage: Stage::Older(older) });
        self.bring_down(at, "power is gone, and an older copy is put back");
    }

    /// Whether nothing else may happen: an older copy is about to be put back, or its node has not
    /// met the leader yet.
    pub(in crate::world) fn holds_still(&self, now: Duration) -> bool {
        match self.loss.as_ref().map(|loss| &loss.stage) {
            Some(Stage::Copied(copied)) => now >= copied.due,
            Some(Stage::Older(_)) => true,
            _ => false,
        }
    }

    /// The leader that all nodes follow, with what it has seen another node acknowledge.
    fn known_of(&self, at: usize) -> Option<Known> {
        let (leader, term) = self.leader().filter(|(leader, _)| *leader != at)?;
        let is_with = |node: usize| node == leader || self.follows(node, leader, term);
        let groups = self.host(leader).groups();
        let system = groups.iter().find(|status| status.group == GroupId::SYSTEM)?;
        let own = system.replicas.iter().find(|own| self.host(at).is_member(own.raft_id))?;
        let acknowledged = own.applied;
        (0..self.seats.len()).all(is_with).then_some(Known { leader, term, acknowledged })
    }

    /// Nobody serves on a copy of which the leader that he follows knows that it is older.
    pub(in crate::world) fn check_copy(&mut self) -> Checked {
        let Some(Loss { at, stage: Stage::Older(older) }) = &self.loss else { return Ok(()) };
        let (at, host) = (*at, &self.seats[*at].host);
        if host.starts() == older.life || !host.is_ready() {
            return Ok(());
        }
        if let Some(Known { leader, term, acknowledged }) = older.known
            && self.leader() == Some((leader, term))
            && self.follows(at, leader, term)
        {
            refused(host.name(), &Lack::Entries { held: older.held, acknowledged }, true)?;
        }
        // Nobody knew, or whoever did leads no longer.
        trace::event(host.name(), "fault", format_args!("nobody notices the older copy"), &[]);
        self.loss = None;
        Ok(())
    }
}

/// Index of the last entry that a log has of the system group; 0 where there is none.
fn last_entry(disk: &SimDisk) -> u64 {
    let log = inspect::log(&*disk.fork().mount()).unwrap_or_default();
    let last = log.groups.get(&GroupId::SYSTEM).and_then(|entries| entries.last());
    last.map_or(0, |(position, _)| position.index)
}
