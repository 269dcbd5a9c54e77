//! Folders of tenants that are lost, replaced by an older copy, or rot, while their node is down.
//!
//! The log says which tenants have files and up to where those were durable. Where the folder has less,
//! the tenant alone is out of service. On a lone node it stays so until the whole folder is put back
//! some seconds later: that is what an operator with a backup would do. Among other replicas nobody puts
//! anything back: the node has to get from them what the folder held, and nothing else is taken from
//! their disks meanwhile. An older copy that has all that the log vouches for is no damage: the log
//! makes good what it lacks.
//!
//! The power cut comes first, and then the look at the log: what was not synced the log does not say any
//! more.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outside::ensure;
use rand::Rng as _;
use shiioo_actors::domain::ids::{Position, StateMachineId};
use shiioo_storage::disk::{DiskCopy, OpenMode, SimDisk};
use shiioo_storage::inspect::{self, PartImage};

use crate::checks::Checked;
use crate::checks::out_of_service::Reason;
use crate::env::trace;
use crate::plan::{REGIONS_MAX, regions};
use crate::world::board::OutOfService;
use crate::world::{Fault, World};

/// A folder that is to be rebuilt is looked at so often, ms.
const LOOK_MS: u64 = 250;

/// Where folders of tenants are on a disk.
const TENANTS: &str = "tenants";
/// The file of a folder that says up to where it goes.
const INDEX: &str = "index.redb";
/// The events of a tenant.
const EVENTS: &str = "events.jsonl";

/// A copy is put back after so long, ms.
const AGE_MS_MIN: u64 = 500;
const AGE_MS_MAX: u64 = 6000;
/// A tenant is out of service for so long, ms: the node starts within 1.5 s, and needs a moment to be
/// asked.
const OUT_MS_MIN: u64 = 1500;
const OUT_MS_MAX: u64 = 5000;

/// The folder that is not as it was, or is about to be.
pub(in crate::world) struct Folder {
    /// The node, by its place.
    at: usize,
    tenant: String,
    until: Duration,
    stage: Stage,
}

enum Stage {
    /// This copy of it is going to be put in its place.
    Copied(DiskCopy),
    /// It was replaced by less, and this is what it was.
    Lacks(DiskCopy),
    /// It is to be rebuilt from other replicas.
    Heals(Wound),
}

/// What is wrong with a folder, until it is rebuilt.
enum Wound {
    /// It went up to there.
    Lacks(Reason, Position),
    /// A byte of its events is not this any more.
    Rots(u64, u8),
}

impl World {
    /// Takes the folder of a tenant away.
    pub(in crate::world) fn lose_folder(&mut self) {
        if let Some((at, tenant)) = self.some_folder() {
            let nothing = DiskCopy::nothing(&folder(&tenant));
            self.replace_folder(at, tenant, &nothing);
        }
    }

    /// Copies the folder of a tenant, to put the copy back later.
    pub(in crate::world) fn copy_folder(&mut self) {
        if let Some((at, tenant)) = self.some_folder() {
            let host = &self.seats[at].host;
            trace::event(host.name(), "fault", format_args!("{} is copied", folder(&tenant)), &[]);
            let copy = host.disk.copy(&folder(&tenant));
            let until = self.after(AGE_MS_MIN..=AGE_MS_MAX);
            self.folder = Some(Folder { at, tenant, until, stage: Stage::Copied(copy) });
        }
    }

    /// Does what is next with a folder whose time has come.
    pub(in crate::world) fn follow_folder(&mut self, now: Duration) {
        let is_due = |folder: &mut Folder| folder.until <= now;
        match self.folder.take_if(is_due) {
            Some(Folder { at, tenant, stage: Stage::Copied(copy), .. }) => {
                self.replace_folder(at, tenant, &copy);
            }
            Some(Folder { at, stage: Stage::Lacks(whole), .. }) => self.mend_folder(at, &whole),
            Some(Folder { at, tenant, stage: Stage::Heals(wound), .. }) => {
                self.look_at_wound(at, tenant, wound);
            }
            None => {}
        }
    }

    /// Whether the disk of a node lacks something of a tenant: the others have to keep theirs.
    pub(in crate::world) fn lacks_folder(&self) -> bool {
        self.folder.as_ref().is_some_and(|folder| !matches!(folder.stage, Stage::Copied(_)))
    }

    /// Whether other replicas can give back what a folder lacks. What a node has left of a group that moved
    /// nobody rebuilds.
    fn can_heal(&self) -> bool {
        let has_replicas = self.seats.len() > 1 && self.left_over().is_none();
        has_replicas && self.loss.is_none() && self.is_full()
    }

    /// Waits until a folder is rebuilt.
    fn look_at_wound(&mut self, at: usize, tenant: String, wound: Wound) {
        let disk = &self.seats[at].host.disk;
        // Deleted meanwhile, it has nothing to be rebuilt.
        let is_gone = known_to_log(disk, &tenant).is_none();
        let is_whole = match &wound {
            Wound::Lacks(_, known) => {
                held_in_folder(disk, &tenant).is_some_and(|held| held >= *known)
            }
            Wound::Rots(offset, byte) => byte_of_events(disk, &tenant, *offset) == Some(*byte),
        };
        if !is_whole && !is_gone {
            let until = self.after(LOOK_MS..=LOOK_MS);
            self.folder = Some(Folder { at, tenant, until, stage: Stage::Heals(wound) });
            return;
        }
        self.board.out_of_service.take();
        let name = self.seats[at].host.name();
        trace::event(name, "fault", format_args!("{} is whole again", folder(&tenant)), &[]);
        if is_whole {
            self.count(match wound {
                Wound::Lacks(Reason::Missing, _) => Fault::LostFolder,
                Wound::Lacks(Reason::Older, _) => Fault::OlderFolder,
                Wound::Rots(..) => Fault::RottenFolder,
            });
        }
    }

    /// Flips a bit of a tenant's events, where other replicas have them.
    pub(in crate::world) fn rot_folder(&mut self) {
        let Some((at, tenant)) = self.some_folder().filter(|_| self.can_heal()) else { return };
        let host = Rc::clone(&self.seats[at].host);
        host.cut_power();
        let len = part_in_folder(&host.disk, &tenant).map_or(0, |part| part.events.len() as u64);
        if len > 0 {
            let (offset, bit) = (self.rng.random_range(0..len), self.rng.random_range(0..8));
            let byte = byte_of_events(&host.disk, &tenant, offset).unwrap_or_default();
            let path = format!("{}/{EVENTS}", folder(&tenant));
            host.disk.flip_bit(&path, offset, bit);
            self.has_rotted = true;
            let what = format!("bit {bit} of byte {offset} of {path} rots");
            trace::event(host.name(), "fault", format_args!("{what}"), &[]);
            let (until, stage) =
                (self.after(LOOK_MS..=LOOK_MS), Stage::Heals(Wound::Rots(offset, byte)));
            self.folder = Some(Folder { at, tenant, until, stage });
        }
        self.bring_down(at, "power is gone");
    }

    /// No disk of a node that has stopped lacks something of a tenant that its log knows of.
    pub(in crate::world) fn check_folders(&self) -> Checked {
        for seat in &self.seats {
            let disk = &seat.host.disk;
            let log = inspect::log(&*disk.fork().mount()).unwrap_or_default();
            for (part, known) in log.files {
                let StateMachineId::Tenant(tenant) = part else { continue };
                let held = held_in_folder(disk, &tenant.to_string());
                let name = seat.host.name();
                ensure!(
                    held >= Some(known),
                    "{} on {name} was up to {known}, and is up to {held:?} in the end",
                    folder(&tenant.to_string())
                );
            }
        }
        Ok(())
    }

    /// Puts a folder back that is not as it was; what was only copied stays, and what is to be rebuilt
    /// has to be whole in the end.
    pub(in crate::world) fn end_folders(&mut self) {
        if let Some(Folder { at, stage: Stage::Lacks(whole), .. }) = self.folder.take() {
            self.mend_folder(at, &whole);
        }
    }

    /// A node that runs, and a tenant of a client with a folder there, where no folder is wrong yet.
    pub(super) fn some_folder(&mut self) -> Option<(usize, String)> {
        if self.folder.is_some() {
            return None;
        }
        let runs = |at: &usize| self.seats[*at].is_up() && self.seats[*at].host.is_ready();
        let hosts = (0..self.seats.len()).filter(runs);
        let (at, tenants) =
            hosts.map(|at| (at, self.tenants_on(at))).find(|(_, of)| !of.is_empty())?;
        Some((at, tenants[self.rng.random_range(0..tenants.len())].clone()))
    }

    /// The tenants of clients that have a folder on a node.
    fn tenants_on(&self, at: usize) -> Vec<String> {
        let disk = self.seats[at].host.disk.fork().mount();
        let names = disk.list(TENANTS).unwrap_or_default().into_iter().map(|entry| entry.name);
        let known = self.board.limits.borrow();
        names.filter(|name| known.contains_key(name)).collect()
    }

    /// Puts a copy, or nothing, in the place of a tenant's folder, where the log knows of one.
    fn replace_folder(&mut self, at: usize, tenant: String, copy: &DiskCopy) {
        let heals = self.can_heal();
        if self.seats.len() > 1 && !heals {
            return;
        }
        let host = Rc::clone(&self.seats[at].host);
        host.cut_power();
        let (known, whole) = (known_to_log(&host.disk, &tenant), host.disk.copy(&folder(&tenant)));
        // Deleted meanwhile, or not told to the log.
        let Some(known) = known.filter(|_| !whole.is_nothing()) else {
            return self.bring_down(at, "power is gone");
        };
        host.put_back(copy);
        let held = held_in_folder(&host.disk, &tenant);
        let what = format!("{} was up to {known:?}, is up to {held:?}", folder(&tenant));
        trace::event(host.name(), "fault", format_args!("{what}"), &[]);
        let reason = match held {
            None if copy.is_nothing() => Some(Reason::Missing),
            // A copy made in the middle of a commit, which the program can read.
            None => Some(Reason::Older),
            Some(held) => (held.index < known.index).then_some(Reason::Older),
        };
        match reason {
            Some(reason) => {
                self.board.out_of_service.replace(Some(OutOfService::new(at, &tenant, reason)));
                let (until, stage) = if heals {
                    let wound = Wound::Lacks(reason, known);
                    (self.after(LOOK_MS..=LOOK_MS), Stage::Heals(wound))
                } else {
                    (self.after(OUT_MS_MIN..=OUT_MS_MAX), Stage::Lacks(whole))
                };
                self.folder = Some(Folder { at, tenant, until, stage });
            }
            None => self.count(Fault::ReplayedFolder),
        }
        self.bring_down(at, "power is gone, and a tenant's folder is another");
    }

    fn mend_folder(&mut self, at: usize, whole: &DiskCopy) {
        if let Some(out) = self.board.out_of_service.take()
            && out.was_said
            && out.neighbour_served
        {
            self.count(match out.reason {
                Reason::Missing => Fault::LostFolder,
                Reason::Older => Fault::OlderFolder,
            });
        }
        self.seats[at].host.put_back(whole);
        self.bring_down(at, "power is gone, and the tenant's folder is whole again");
    }

    fn after(&mut self, ms: std::ops::RangeInclusive<u64>) -> Duration {
        self.sim.elapsed() + Duration::from_millis(self.rng.random_range(ms))
    }
}

/// The folder of a tenant on a disk.
pub(crate) fn folder(tenant: &str) -> String {
    format!("{TENANTS}/{tenant}")
}

/// Up to where the files of a tenant were durable when the log was told so last.
pub(super) fn known_to_log(disk: &SimDisk, tenant: &str) -> Option<Position> {
    let log = inspect::log(&*disk.fork().mount()).unwrap_or_default();
    let is_own = |part: &StateMachineId| matches!(part, StateMachineId::Tenant(id) if id.to_string() == tenant);
    log.files.into_iter().find(|(part, _)| is_own(part)).map(|(_, upto)| upto)
}

/// Up to where the files of a tenant go; `None` where there are none.
pub(super) fn held_in_folder(disk: &SimDisk, tenant: &str) -> Option<Position> {
    part_in_folder(disk, tenant).map(|part| part.applied)
}

fn part_in_folder(disk: &SimDisk, tenant: &str) -> Option<PartImage> {
    let disk: Arc<_> = disk.fork().mount();
    // Where the node is in another region than the first, its tenants are in a folder of that name.
    let others = regions(REGIONS_MAX).iter().skip(1).map(|region| format!("{region}/{tenant}"));
    let mut folders = std::iter::once(folder(tenant)).chain(others);
    folders.find_map(|folder| inspect::part(&disk, &format!("{folder}/{INDEX}")).ok().flatten())
}

fn byte_of_events(disk: &SimDisk, tenant: &str, offset: u64) -> Option<u8> {
    let path = format!("{}/{EVENTS}", folder(tenant));
    let mut byte = [0];
    let file = disk.fork().mount().open(&path, OpenMode::Existing).ok()?;
    file.read_at(offset, &mut byte).ok()?;
    Some(byte[0])
}
