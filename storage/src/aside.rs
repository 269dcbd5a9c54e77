//! Moves what a node has of its groups aside, when it goes on as another member, or what of it is damaged.

use std::io;

use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::domain::region::Region;

use crate::disk::{Disk, OpenMode, create_dir_durably, parent};
use crate::index::{SYSTEM_INDEX, events_path, tenants_dir};
use crate::log::LOG_DIR;

/// Bytes that are copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// Moves the log, the control plane's index and the folders of the region's tenants into a folder below the
/// data directory, durably. What is moved already stays where it is; what a start after that has made in its
/// place comes beside it, as `tenants.2` for example.
///
/// # Errors
/// When the system says no; some of it may have been moved.
pub fn set_data_aside(disk: &dyn Disk, region: &Region, folder: &str) -> io::Result<()> {
    create_dir_durably(disk, folder)?;
    // The log last: as long as it is where it was, what is beside it belongs to it.
    for path in [SYSTEM_INDEX, tenants_dir(region).as_str(), LOG_DIR] {
        move_into(disk, path, folder)?;
    }
    disk.sync_dir(folder)?;
    disk.sync_dir("")
}

/// Moves a file or directory into a folder, if there is one, under the first name that is free there: one
/// that was moved before is neither replaced, which a rename would do to a file, nor in the way. An empty
/// directory beside such a one is removed: each start makes one, and there may be many starts.
fn move_into(disk: &dyn Disk, path: &str, folder: &str) -> io::Result<()> {
    if !disk.exists(path)? {
        return Ok(());
    }
    let mut aside = format!("{folder}/{path}");
    let is_empty = || disk.list(path).is_ok_and(|names| names.is_empty());
    if disk.exists(&aside)? && is_empty() {
        return disk.remove_dir_all(path);
    }
    for number in 2.. {
        if !disk.exists(&aside)? {
            break;
        }
        aside = format!("{folder}/{path}.{number}");
    }
    disk.rename(path, &aside)
}

/// Moves the log into a folder below the data directory, durably, so that another can be written. Where it
/// was moved before, or there was none, what stands in its place is an unfinished other one, and goes.
///
/// # Errors
/// When the system says no.
pub fn set_log_aside(disk: &dyn Disk, folder: &str) -> io::Result<()> {
    create_dir_durably(disk, folder)?;
    let aside = format!("{folder}/{LOG_DIR}");
    let is_there = disk.exists(LOG_DIR)?;
    if !disk.exists(&aside)? {
        if is_there {
            disk.rename(LOG_DIR, &aside)?;
        } else {
            // Says that there was none, for the attempt after a crash.
            disk.create_dir_all(&aside)?;
        }
    } else if is_there {
        disk.remove_dir_all(LOG_DIR)?;
    }
    disk.sync_dir(folder)?;
    disk.sync_dir("")
}

/// Moves the control plane's index into a folder below the data directory, durably. What is moved already
/// stays where it is, and one that came after it is kept beside it.
///
/// # Errors
/// When the system says no.
pub fn set_system_aside(disk: &dyn Disk, folder: &str) -> io::Result<()> {
    create_dir_durably(disk, folder)?;
    move_into(disk, SYSTEM_INDEX, folder)?;
    disk.sync_dir(folder)?;
    disk.sync_dir("")
}

/// Copies the end of a tenant's event log, from a byte on, into a folder below the data directory, durably.
/// What was copied before stays as it is.
///
/// # Errors
/// When the system says no.
pub fn keep_events(
    disk: &dyn Disk,
    region: &Region,
    tenant: TenantId,
    from: u64,
    folder: &str,
) -> io::Result<()> {
    let path = events_path(region, tenant);
    let aside = format!("{folder}/{path}.from-{from}");
    if disk.exists(&aside)? {
        return Ok(());
    }
    create_dir_durably(disk, parent(&aside))?;
    let events = disk.open(&path, OpenMode::Existing)?;
    let beside = format!("{aside}.tmp");
    let kept = disk.open(&beside, OpenMode::OpenOrCreate)?;
    // A leftover of an attempt that a crash ended.
    kept.set_len(0)?;
    let (mut at, end) = (from, events.len()?);
    while at < end {
        let piece = usize::try_from(end - at).map_or(COPY_BYTES, |rest| rest.min(COPY_BYTES));
        let mut bytes = vec![0; piece];
        events.read_at(at, &mut bytes)?;
        kept.write_at(at - from, &bytes)?;
        at += piece as u64;
    }
    kept.sync_data()?;
    disk.rename(&beside, &aside)?;
    disk.sync_dir(parent(&aside))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;

    #[test]
    fn everything_is_moved_once_and_what_comes_later_is_not_there() {
        let disk = SimDisk::new(1);
        let mounted = disk.mount();
        let put = |path: &str| {
            create_dir_durably(&*mounted, crate::disk::parent(path)).unwrap();
            mounted.open(path, OpenMode::CreateNew).unwrap().sync_data().unwrap();
        };
        let paths =
            ["log/0000000001.log", "system.redb", "tenants/t/index.redb", "identity/node.json"];
        paths.into_iter().for_each(put);
        for _ in 0..2 {
            set_data_aside(&*mounted, &Region::default(), "replaced-3").unwrap();
        }
        disk.cut_power();
        let mounted = disk.mount();
        let is_there = |path: &str| mounted.exists(path).unwrap();
        for path in ["log", "system.redb", "tenants"] {
            assert!(!is_there(path) && is_there(&format!("replaced-3/{path}")), "{path}");
        }
        assert!(is_there("identity"));
    }

    /// A start makes the tenants' folder, and fails before it has another identity; the next moves again.
    #[test]
    fn what_was_made_after_the_first_move_comes_beside_it() {
        let disk = SimDisk::new(1);
        let mounted = disk.mount();
        let put = |path: &str| {
            create_dir_durably(&*mounted, crate::disk::parent(path)).unwrap();
            mounted.open(path, OpenMode::CreateNew).unwrap().sync_data().unwrap();
        };
        for _ in 0..3 {
            put("tenants/t/index.redb");
            put("system.redb");
            set_data_aside(&*mounted, &Region::default(), "replaced-3").unwrap();
        }
        // What a start makes and nobody fills is not kept.
        mounted.create_dir_all("tenants").unwrap();
        set_data_aside(&*mounted, &Region::default(), "replaced-3").unwrap();
        assert!(!mounted.exists("tenants").unwrap());
        put("system.redb");
        set_system_aside(&*mounted, "replaced-3").unwrap();
        let is_there = |path: &str| mounted.exists(&format!("replaced-3/{path}")).unwrap();
        for number in ["", ".2", ".3"] {
            assert!(is_there(&format!("tenants{number}/t/index.redb")), "{number}");
            assert!(is_there(&format!("system.redb{number}")), "{number}");
        }
        assert!(is_there("system.redb.4") && !is_there("tenants.4"));
    }
}
