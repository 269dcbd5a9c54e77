//! Takes over a log of version 1, which has no id and does not say who has files.

use std::collections::BTreeMap;

use shiioo_actors::domain::ids::{GroupId, Position, StateMachineId};
use shiioo_actors::domain::region::Region;
use shiioo_actors::ports::StoreError;

use super::entry_index::EntryIndex;
use super::read::load;
use super::record::{Body, LogEntry};
use crate::disk::Disk;
use crate::index;

/// Lists who has files beside a log that does not say so.
///
/// Tenants are taken from the directory, as version 1 did. The control plane must have its file as
/// soon as entries for it are not applied again, because they are purged or below the low-water
/// mark. Then a missing `system.redb` is damage, and not a new node.
pub(crate) fn files_beside_log_without_id(
    disk: &dyn Disk,
    region: &Region,
    entries: &EntryIndex,
) -> Result<BTreeMap<StateMachineId, Position>, StoreError> {
    let files = index::present(disk, region)?;
    let mut files: BTreeMap<_, _> =
        files.into_iter().map(|part| (part, Position::default())).collect();
    let state = entries.state(GroupId::SYSTEM);
    let end = state.low_water_mark.map_or(0, |mark| mark.position.index + 1);
    let is_command = |entry: &LogEntry| matches!(entry.body, Body::Command(_));
    let below = load(entries.find(GroupId::SYSTEM, 0, end))?;
    if state.purged.is_some() || below.iter().any(is_command) {
        files.entry(StateMachineId::System).or_default();
    }
    Ok(files)
}
