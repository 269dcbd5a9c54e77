//! Folders of deleted tenants that turn up again, as from a backup that somebody puts back.
//!
//! A copy of a tenant's folder is kept until the tenant was deleted and its folder is gone from the node,
//! and is then put back there. What is deleted stays deleted: the control plane remembers every tenant that
//! there was, each node looks now and then for files of those that are gone, and has their group delete them
//! again. So in the end nobody has files of a deleted tenant.

use std::rc::Rc;
use std::time::Duration;

use outside::ensure;
use shiioo_storage::disk::DiskCopy;

use super::folders::{folder, held_in_folder, known_to_log};
use crate::checks::{Checked, liveness};
use crate::env::trace;
use crate::world::{Fault, World};

/// A kept copy is looked at so often.
const LOOK: Duration = Duration::from_millis(250);
/// The nodes' disks are looked at so often in the end.
const LOOK_IN_THE_END: Duration = Duration::from_secs(1);

/// A copy of a tenant's folder.
pub(in crate::world) struct Kept {
    /// The node, by its place.
    at: usize,
    tenant: String,
    copy: DiskCopy,
    look_at: Duration,
}

impl World {
    /// Copies the folder of a tenant, to put the copy back once the tenant was deleted. One copy at a time.
    pub(in crate::world) fn keep_folder(&mut self) {
        if self.kept.is_some() {
            return;
        }
        let Some((at, tenant)) = self.some_folder() else { return };
        let host = &self.seats[at].host;
        if held_in_folder(&host.disk, &tenant).is_none() {
            return;
        }
        trace::event(host.name(), "fault", format_args!("{} is kept", folder(&tenant)), &[]);
        let copy = host.disk.copy(&folder(&tenant));
        self.kept = Some(Kept { at, tenant, copy, look_at: self.sim.elapsed() + LOOK });
    }

    /// Puts a kept copy back if its tenant was deleted.
    pub(in crate::world) fn return_folder(&mut self, now: Duration) {
        let Some(mut kept) = self.kept.take_if(|kept| kept.look_at <= now) else { return };
        let host = Rc::clone(&self.seats[kept.at].host);
        let is_asked_to_go = self.board.deletions.borrow().contains(&kept.tenant);
        let is_there = |disk| {
            known_to_log(disk, &kept.tenant).is_some()
                || held_in_folder(disk, &kept.tenant).is_some()
        };
        if !is_asked_to_go || is_there(&host.disk) {
            kept.look_at = now + LOOK;
            self.kept = Some(kept);
            return;
        }
        host.cut_power();
        // The removal may not have been durable.
        if !is_there(&host.disk) {
            host.put_back(&kept.copy);
            let what = format!("{}, which was deleted, is put back", folder(&kept.tenant));
            trace::event(host.name(), "fault", format_args!("{what}"), &[]);
            self.count(Fault::ReturnedFolder);
        }
        self.bring_down(kept.at, "power is gone");
    }

    /// Runs on until nobody has files of a deleted tenant.
    pub(in crate::world) fn await_deletions(&mut self) -> Checked {
        let bound = self.sim.elapsed() + liveness::DELETED_MAX;
        while let Some(left) = self.deleted_and_there() {
            let in_time = self.sim.elapsed() < bound;
            ensure!(in_time, "{left} after {:?}", liveness::DELETED_MAX);
            self.run_for(LOOK_IN_THE_END)?;
        }
        Ok(())
    }

    /// Who has files of a deleted tenant, if anybody has.
    fn deleted_and_there(&self) -> Option<String> {
        let deleted = self.board.deletions.borrow();
        self.seats.iter().find_map(|seat| {
            let (name, disk) = (seat.host.name(), &seat.host.disk);
            let left = deleted.iter().find(|tenant| held_in_folder(disk, tenant).is_some())?;
            Some(format!("{name} still has files of {left}, which was deleted,"))
        })
    }
}
