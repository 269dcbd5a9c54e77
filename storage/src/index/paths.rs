//! The paths of the files, below the data directory.
//!
//! | of | files |
//! |---|---|
//! | the control plane | `system.redb`; `system.redb.damaged` where it was replaced |
//! | a tenant | `tenants/<id>/index.redb`, `events.jsonl`, `blobs/`; `idle` where it has no work |
//! | a tenant placed in a region other than `default` | the same below `<region>/<id>/` |
//! | what another replica sends, until it is whole | `system.redb.staged`; `tenants/staged-<id>/`, with files as a tenant has |

use std::io;

use shiioo_actors::domain::ids::{StateMachineId, TenantId};
use shiioo_actors::domain::region::Region;
use shiioo_actors::ports::{StoreError, StoreStats};

use crate::disk::{DirEntry, Disk, store_error};

/// Directory of the tenants of the region `default`.
const TENANTS_DIR: &str = "tenants";

/// The control plane's index.
pub(crate) const SYSTEM_INDEX: &str = "system.redb";

/// Gives the directory of the tenants of a region. No region is named like another folder of ours.
pub(crate) fn tenants_dir(region: &Region) -> String {
    if region.is_default() { TENANTS_DIR.to_owned() } else { region.to_string() }
}

/// Gives the path of a tenant's event log.
pub(crate) fn events_path(region: &Region, tenant: TenantId) -> String {
    Paths::of(StateMachineId::Tenant(tenant), &tenants_dir(region)).events
}

/// The file that marks a tenant without work.
const IDLE_MARK: &str = "idle";

/// Prefix of the name of a folder that is being removed. No tenant's id begins so.
pub(crate) const TRASH_PREFIX: &str = "trash-";

/// Prefix of the name of a folder that another replica's files of a tenant come to. No tenant's id begins so.
pub(crate) const STAGED_PREFIX: &str = "staged-";

/// What is added to the name of the control plane's index in the same case.
const STAGED_SUFFIX: &str = ".staged";

/// What is added to the name of the control plane's index when it is moved aside.
pub(crate) const ASIDE_SUFFIX: &str = ".damaged";

/// Directories below `blobs/` that are walked at most.
const BLOB_DIRS_DEEP_MAX: usize = 4;

/// The paths of one state machine's files.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    pub part: StateMachineId,
    /// The directory that holds the index.
    pub dir: String,
    pub index: String,
    /// A tenant's; the control plane has no events.
    pub events: String,
    /// A tenant's.
    pub blobs: Option<String>,
    /// A tenant's: an empty file that is there while the tenant has no work.
    pub idle_mark: Option<String>,
}

impl Paths {
    pub fn of(part: StateMachineId, tenants_dir: &str) -> Self {
        match part {
            StateMachineId::System => Self {
                part,
                dir: String::new(),
                index: SYSTEM_INDEX.into(),
                events: String::new(),
                blobs: None,
                idle_mark: None,
            },
            StateMachineId::Tenant(id) => Self::in_folder(part, tenant_dir(tenants_dir, id)),
        }
    }

    /// Gives the paths of the files that another replica's come to.
    pub fn staged(part: StateMachineId, tenants_dir: &str) -> Self {
        match part {
            StateMachineId::System => {
                let index = format!("{SYSTEM_INDEX}{STAGED_SUFFIX}");
                Self { index, ..Self::of(part, tenants_dir) }
            }
            StateMachineId::Tenant(id) => {
                Self::in_folder(part, format!("{tenants_dir}/{STAGED_PREFIX}{id}"))
            }
        }
    }

    fn in_folder(part: StateMachineId, dir: String) -> Self {
        Self {
            part,
            index: format!("{dir}/index.redb"),
            events: format!("{dir}/events.jsonl"),
            blobs: Some(format!("{dir}/blobs")),
            idle_mark: Some(format!("{dir}/{IDLE_MARK}")),
            dir,
        }
    }

    /// Gives the path under which the index is made.
    pub fn new_index(&self) -> String {
        format!("{}.new", self.index)
    }
}

/// Gives the folder of a tenant.
pub(crate) fn tenant_dir(tenants_dir: &str, tenant: TenantId) -> String {
    format!("{tenants_dir}/{tenant}")
}

/// Counts the files of one state machine and their bytes, as the file system has them.
pub(crate) fn stats(disk: &dyn Disk, paths: &Paths) -> Result<StoreStats, StoreError> {
    let part = paths.part;
    let failed = |error| store_error(format!("list files of {part}"), error);
    let mut stats = StoreStats::default();
    for entry in disk.list(&paths.dir).map_err(failed)? {
        match (part, entry.name.as_str()) {
            (StateMachineId::System, SYSTEM_INDEX) | (StateMachineId::Tenant(_), "index.redb") => {
                stats.index_bytes = entry.len;
            }
            (StateMachineId::Tenant(_), "events.jsonl") => stats.events_bytes = entry.len,
            (StateMachineId::Tenant(_), IDLE_MARK) => {}
            _ => continue,
        }
        stats.file_count += 1;
    }
    if let Some(blobs) = &paths.blobs {
        add_blobs(disk, blobs, BLOB_DIRS_DEEP_MAX, &mut stats).map_err(failed)?;
    }
    Ok(stats)
}

fn add_blobs(disk: &dyn Disk, dir: &str, deep: usize, stats: &mut StoreStats) -> io::Result<()> {
    for DirEntry { name, is_dir, len } in disk.list(dir)? {
        if !is_dir {
            stats.file_count += 1;
            stats.blobs_bytes += len;
        } else if deep > 0 {
            add_blobs(disk, &format!("{dir}/{name}"), deep - 1, stats)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{OpenMode, SimDisk};

    fn put(disk: &dyn Disk, path: &str, len: usize) {
        let file = disk.open(path, OpenMode::CreateNew).unwrap();
        file.write_at(0, &vec![1; len]).unwrap();
    }

    #[test]
    fn files_of_a_part_are_counted_and_blobs_as_deep_as_folders_go() {
        let disk = SimDisk::new(1);
        let disk = &*disk.mount();
        let tenant = "550e8400-e29b-41d4-a716-446655440000".parse().unwrap();
        let paths = Paths::of(StateMachineId::Tenant(tenant), &tenants_dir(&Region::default()));
        let mut dir = paths.blobs.clone().unwrap();
        for deep in 0..7 {
            disk.create_dir_all(&dir).unwrap();
            put(disk, &format!("{dir}/blob"), 1 << deep);
            dir = format!("{dir}/deeper");
        }
        put(disk, &paths.index, 100);
        put(disk, &paths.events, 200);
        put(disk, paths.idle_mark.as_ref().unwrap(), 0);
        put(disk, &format!("{}/foreign", paths.dir), 1000);
        let found = stats(disk, &paths).unwrap();
        let counted = BLOB_DIRS_DEEP_MAX as u64 + 1;
        assert_eq!((found.index_bytes, found.events_bytes), (100, 200));
        assert_eq!((found.blobs_bytes, found.file_count), ((1 << counted) - 1, 3 + counted));

        let paths = Paths::of(StateMachineId::System, "tenants");
        put(disk, &paths.index, 300);
        let found = stats(disk, &paths).unwrap();
        assert_eq!((found.index_bytes, found.file_count), (300, 1));
    }
}
