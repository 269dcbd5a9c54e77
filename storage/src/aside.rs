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
/// data directory, durably. What is moved already stays where it is.
///
/// # Errors
/// When the system says no; some of it may have been moved.
pub fn set_data_aside(disk: &dyn Disk, region: &Region, folder: &str) -> io::Result<()> {
    create_dir_durably(disk, folder)?;
    // The log last: as long as it is where it was, what is beside it belongs to it.
    for path in [SYSTEM_INDEX, tenants_dir(region).as_str(), LOG_DIR] {
        if disk.exists(path)? {
            disk.rename(path, &format!("{folder}/{path}"))?;
        }
    }
    disk.sync_dir(folder)?;
    disk.sync_dir("")
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
/// stays where it is.
///
/// # Errors
/// When the system says no.
pub fn set_system_aside(disk: &dyn Disk, folder: &str) -> io::Result<()> {
    create_dir_durably(disk, folder)?;
    if disk.exists(SYSTEM_INDEX)? {
        disk.rename(SYSTEM_INDEX, &format!("{folder}/{SYSTEM_INDEX}"))?;
    }
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
}
