//! The directory of a region's tenants: who has files, and how a folder goes.

use std::io;

use shiioo_actors::domain::ids::{StateMachineId, TenantId};
use shiioo_actors::domain::region::Region;
use shiioo_actors::ports::StoreError;

use super::paths::{ASIDE_SUFFIX, Paths, STAGED_PREFIX, TRASH_PREFIX, tenant_dir, tenants_dir};
use crate::disk::{Disk, OpenMode, create_dir_durably, store_error};

/// Lists who has files below a data directory.
pub(crate) fn present(disk: &dyn Disk, region: &Region) -> Result<Vec<StateMachineId>, StoreError> {
    let dir = tenants_dir(region);
    let failed = |error| store_error(format!("list {dir}"), error);
    let system = Paths::of(StateMachineId::System, &dir).index;
    let mut parts = Vec::new();
    if disk.exists(&system).map_err(|error| store_error(format!("look for {system}"), error))? {
        parts.push(StateMachineId::System);
    }
    if disk.exists(&dir).map_err(failed)? {
        parts.extend(tenants(disk, &dir, |_| Ok(true))?.into_iter().map(StateMachineId::Tenant));
    }
    Ok(parts)
}

/// Lists the tenants that have files and are `wanted`.
///
/// A tenant has files when it has an index, which is made last: a folder without one was begun and
/// never finished.
pub(crate) fn tenants(
    disk: &dyn Disk,
    tenants_dir: &str,
    wanted: impl Fn(&Paths) -> io::Result<bool>,
) -> Result<Vec<TenantId>, StoreError> {
    let failed = |error| store_error(format!("list {tenants_dir}"), error);
    let entries = disk.list(tenants_dir).map_err(failed)?;
    let folders = entries.into_iter().filter(|entry| entry.is_dir);
    let mut tenants = Vec::new();
    for tenant in folders.filter_map(|entry| entry.name.parse().ok()) {
        let paths = Paths::of(StateMachineId::Tenant(tenant), tenants_dir);
        if disk.exists(&paths.index).map_err(failed)? && wanted(&paths).map_err(failed)? {
            tenants.push(tenant);
        }
    }
    Ok(tenants)
}

/// Makes the directory durably, and ends removals that a crash interrupted. What other replicas had sent and was not
/// whole goes, too, and so do folders that were being made: the tenant may live on other nodes by now, and then
/// nobody here would ask for them again.
pub(crate) fn prepare(disk: &dyn Disk, tenants_dir: &str) -> io::Result<()> {
    create_dir_durably(disk, tenants_dir)?;
    for entry in disk.list(tenants_dir)?.into_iter().filter(|entry| entry.is_dir) {
        let is_left = match entry.name.parse() {
            Ok(tenant) => {
                let paths = Paths::of(StateMachineId::Tenant(tenant), tenants_dir);
                // One folder that cannot be read must not keep the node and its other tenants from starting.
                is_unfinished(disk, &paths).unwrap_or_else(|error| {
                    tracing::warn!(folder = %paths.dir, %error, "a folder that cannot be read is kept");
                    false
                })
            }
            Err(_) => [TRASH_PREFIX, STAGED_PREFIX].iter().any(|it| entry.name.starts_with(it)),
        };
        if is_left {
            disk.remove_dir_all(&format!("{tenants_dir}/{}", entry.name))?;
        }
    }
    remove_staged(disk, &Paths::staged(StateMachineId::System, tenants_dir))
}

/// Tells whether a crash ended the making of a tenant's files. The index comes last, and events only after it: a
/// folder that has events and no index is damage, and stays.
fn is_unfinished(disk: &dyn Disk, paths: &Paths) -> io::Result<bool> {
    if disk.exists(&paths.index)? {
        return Ok(false);
    }
    if disk.exists(&paths.events)? && disk.open(&paths.events, OpenMode::Existing)?.len()? > 0 {
        return Ok(false);
    }
    match &paths.blobs {
        Some(blobs) if disk.exists(blobs)? => Ok(disk.list(blobs)?.is_empty()),
        _ => Ok(true),
    }
}

/// Removes staged files. Not durably: nothing is read of them if they come back.
pub(crate) fn remove_staged(disk: &dyn Disk, staged: &Paths) -> io::Result<()> {
    if staged.blobs.is_some() {
        return if disk.exists(&staged.dir)? { disk.remove_dir_all(&staged.dir) } else { Ok(()) };
    }
    for path in [&staged.index, &staged.new_index()] {
        if disk.exists(path)? {
            disk.remove_file(path)?;
        }
    }
    Ok(())
}

/// Removes a tenant's folder durably, as a whole.
///
/// Removing file by file could stop in the middle and leave events without an index, which is what
/// damage looks like. A rename is all or nothing.
pub(crate) fn remove(disk: &dyn Disk, tenants_dir: &str, tenant: TenantId) -> io::Result<()> {
    let dir = tenant_dir(tenants_dir, tenant);
    let trash = format!("{tenants_dir}/{TRASH_PREFIX}{tenant}");
    if disk.exists(&dir)? {
        // Left by a removal that failed between its rename and its end.
        if disk.exists(&trash)? {
            disk.remove_dir_all(&trash)?;
        }
        disk.rename(&dir, &trash)?;
    }
    // Also where the folder was gone: its room is wanted, and an earlier attempt may have left it as trash.
    if disk.exists(&trash)? {
        // The rename is durable before anything in the folder goes: after a power cut the folder is
        // there whole under its old name, or is trash, which `prepare` removes.
        disk.sync_dir(tenants_dir)?;
        disk.remove_dir_all(&trash)?;
    }
    // Also when the folder was gone: an earlier removal may have failed before it was durable.
    disk.sync_dir(tenants_dir)
}

/// Moves the control plane's index aside, durably. The first that was moved aside is kept until somebody
/// removes it: a later one may be what an attempt to replace it left.
pub(crate) fn set_aside(disk: &dyn Disk, paths: &Paths) -> io::Result<()> {
    let aside = format!("{}{ASIDE_SUFFIX}", paths.index);
    if disk.exists(&paths.index)? {
        if disk.exists(&aside)? {
            disk.remove_file(&paths.index)?;
        } else {
            disk.rename(&paths.index, &aside)?;
        }
    }
    disk.sync_dir(&paths.dir)
}

/// Tells whether a tenant is marked as one without work.
pub(crate) fn is_marked(disk: &dyn Disk, paths: &Paths) -> io::Result<bool> {
    paths.idle_mark.as_ref().map_or(Ok(false), |mark| disk.exists(mark))
}

/// Makes the mark, or removes it durably.
pub(crate) fn set_mark(disk: &dyn Disk, dir: &str, mark: &str, is_there: bool) -> io::Result<()> {
    if is_there {
        // Not synced: a mark that is lost costs the next leader the start of an idle tenant.
        return disk.open(mark, OpenMode::OpenOrCreate).map(drop);
    }
    match disk.remove_file(mark) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        // Synced also when the mark is gone already: that may not be durable.
        _ => {}
    }
    // A mark that came back with a power cut would hide a run from the next leader.
    disk.sync_dir(dir)
}
