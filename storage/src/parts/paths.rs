//! Where the files of a part are, below the data directory.
//!
//! | part | files |
//! |---|---|
//! | the control plane | `system.redb` |
//! | a tenant | `tenants/<id>/index.redb`, `events.jsonl`, `blobs/`; `idle` where it has no work |
//! | a tenant placed in a region other than `default` | the same below `<region>/<id>/` |

use std::io;

use shiioo_actors::domain::ids::{StateMachineId, TenantId};
use shiioo_actors::handles::DEFAULT_REGION;
use shiioo_actors::ports::{StoreError, StoreStats};

use crate::disk::{DirEntry, Disk, store_error};

/// Where the tenants of the region `default` are.
const TENANTS_DIR: &str = "tenants";

/// Where the tenants of a region are. Its name is none of our own folders': the edge checked it.
pub(crate) fn tenants_dir(region: &str) -> String {
    if region == DEFAULT_REGION { TENANTS_DIR.to_owned() } else { region.to_owned() }
}

/// The file that marks a tenant without work.
const IDLE_MARK: &str = "idle";

/// What the name of a folder that is being removed begins with. No tenant's id does.
pub(crate) const TRASH_PREFIX: &str = "trash-";

/// Directories below `blobs/` that are walked at most.
const BLOB_DIRS_DEEP_MAX: usize = 4;

/// The paths of one part.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    pub part: StateMachineId,
    /// The directory that holds the index.
    pub dir: String,
    pub index: String,
    /// Of a tenant.
    pub events: String,
    /// Of a tenant.
    pub blobs: Option<String>,
    /// Of a tenant: an empty file that is there while the tenant has no work.
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

/// The folder of a tenant.
pub(crate) fn tenant_dir(tenants_dir: &str, tenant: TenantId) -> String {
    format!("{tenants_dir}/{tenant}")
}

/// Sizes of a part's files, as the file system has them.
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
