//! The paths of the files, below the data directory.
//!
//! | of | files |
//! |---|---|
//! | the control plane | `system.redb` |
//! | a tenant | `tenants/<id>/index.redb`, `events.jsonl`, `blobs/`; `idle` where it has no work |
//! | a tenant placed in a region other than `default` | the same below `<region>/<id>/` |

use std::io;

use shiioo_actors::domain::ids::{StateMachineId, TenantId};
use shiioo_actors::handles::DEFAULT_REGION;
use shiioo_actors::ports::{StoreError, StoreStats};

use crate::disk::{DirEntry, Disk, store_error};

/// Directory of the tenants of the region `default`.
const TENANTS_DIR: &str = "tenants";

/// Gives the directory of the tenants of a region. The caller has checked that the region is not
/// named like another folder of ours.
pub(crate) fn tenants_dir(region: &str) -> String {
    if region == DEFAULT_REGION { TENANTS_DIR.to_owned() } else { region.to_owned() }
}

/// The file that marks a tenant without work.
const IDLE_MARK: &str = "idle";

/// Prefix of the name of a folder that is being removed. No tenant's id begins so.
pub(crate) const TRASH_PREFIX: &str = "trash-";

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
                index: "system.redb".into(),
                events: String::new(),
                blobs: None,
                idle_mark: None,
            },
            StateMachineId::Tenant(id) => {
                let dir = tenant_dir(tenants_dir, id);
                Self {
                    part,
                    index: format!("{dir}/index.redb"),
                    events: format!("{dir}/events.jsonl"),
                    blobs: Some(format!("{dir}/blobs")),
                    idle_mark: Some(format!("{dir}/{IDLE_MARK}")),
                    dir,
                }
            }
        }
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
            (StateMachineId::System, "system.redb") | (StateMachineId::Tenant(_), "index.redb") => {
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
