//! Looks for damage in the files of tenants, and cuts event logs where it begins.

use std::sync::Arc;

use shiioo_actors::domain::ids::{StateMachineId, TenantId};
use shiioo_actors::ports::{Store, StoreError, Stores as _};
use shiioo_actors::state::system::SystemState;
use shiioo_actors::state::tenant::TenantState;
use shiioo_actors::state::{RowBuffer, StateMachine as _};
use shiioo_storage::disk::store_error;
use shiioo_storage::{DamagedLog, FileStores, Held, StoresConfig, keep_events};

use super::report::{Damage, EventsLoss, Report, TenantLoss};
use crate::identity::Identity;
use crate::seams::NodeSeams;

/// Above every key of a row.
const KEY_END: [u8; 1024] = [u8::MAX; 1024];
/// Rows that are read at a time.
const ROWS_AT_ONCE: usize = 256;
/// Bytes of events that are read at a time. A line is shorter.
const EVENTS_AT_ONCE: u64 = 32 << 20;

/// What is damaged of a tenant, and what is lost of its events, where that is all.
pub(super) type Loss = (TenantId, Damage, Option<EventsLoss>);

/// Holds what was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Where the files are that can be read.
    pub(super) held: Held,
    /// What is damaged.
    pub(super) losses: Vec<Loss>,
}

/// Reads the files of all tenants.
pub(super) async fn look(stores: &FileStores) -> Result<Found, StoreError> {
    let mut found = Found::default();
    for tenant in stores.tenants()? {
        match look_at(stores, tenant, &mut found).await {
            Ok(()) => {}
            // Nothing here can be rebuilt: the tenant is out of service when the node runs. The others are not
            // held up by it, nor by a disk that cannot read its files.
            Err(error) => found.losses.push((tenant, Damage::of_tenant(tenant, error)?, None)),
        }
    }
    Ok(found)
}

async fn look_at(
    stores: &FileStores,
    tenant: TenantId,
    found: &mut Found,
) -> Result<(), StoreError> {
    let part = StateMachineId::Tenant(tenant);
    let (store, missing) = match stores.open(part).await {
        Ok(store) => (store, None),
        // The index is whole, and speaks of more events than there are.
        Err(StoreError::Damaged { file, offset, what }) if file.ends_with("events.jsonl") => {
            let damage = Damage { file, offset, what };
            (stores.open_cut(tenant, offset).await?, Some(damage))
        }
        Err(error) => return Err(error),
    };
    check_rows(&*store)?;
    let Some(at) = store.position() else { return Ok(()) };
    let (kept, rotten) = whole_events(&*store)?;
    let rows = RowBuffer::new(Some(store));
    let written = TenantState::load(&rows)?.events_written();
    found.held.insert(part, at);
    let rotten = rotten.map(|offset| Damage {
        file: format!("the events of tenant {tenant}"),
        offset,
        what: "an event is not as it was written".to_owned(),
    });
    // The first place counts.
    if let Some(damage) = rotten.or(missing) {
        let KeptEvents { events, bytes } = kept;
        let lost = EventsLoss { kept: events, bytes, lost: written.saturating_sub(events) };
        found.losses.push((tenant, damage, Some(lost)));
    }
    Ok(())
}

/// Finds the tenants whose files are missing, or older than the log says, and not known to be damaged.
pub(super) fn missed(known: &Held, held: &Held, losses: &[Loss]) -> Vec<Loss> {
    let missed = known.iter().filter_map(|(part, known)| {
        let StateMachineId::Tenant(tenant) = part else { return None };
        let what = match held.get(part) {
            Some(at) if at.index >= known.index => return None,
            Some(at) => {
                format!("the files go to {at}, and the log knows that they went to {known}")
            }
            None => format!("the files are missing, which held everything up to {known}"),
        };
        let is_told = losses.iter().any(|(told, ..)| told == tenant);
        let damage = Damage { file: format!("the folder of tenant {tenant}"), offset: 0, what };
        (!is_told).then_some((*tenant, damage, None))
    });
    missed.collect()
}

/// Finds the tenants of which neither a file nor an entry is left, and that are not known to be damaged: the log is
/// gone that would have known of their files.
pub(super) fn lost_with_log(
    log: &DamagedLog,
    state: &SystemState,
    held: &Held,
    losses: &[Loss],
) -> Vec<Loss> {
    let lost = state.tenants().filter(|(tenant, entry)| {
        let is_told = losses.iter().any(|(told, ..)| told == *tenant);
        let is_held = held.contains_key(&StateMachineId::Tenant(**tenant));
        entry.record.is_some() && log.last(entry.group).is_none() && !is_held && !is_told
    });
    let named = lost.map(|(tenant, _)| {
        let file = format!("the folder of tenant {tenant}");
        let what = "the files are missing, and the log as well".to_owned();
        (*tenant, Damage { file, offset: 0, what }, None)
    });
    named.collect()
}

/// Reads all rows, whose checksums the index compares.
pub(super) fn check_rows(store: &dyn Store) -> Result<(), StoreError> {
    let mut from = Vec::new();
    loop {
        let rows = store.scan(&from, &KEY_END, ROWS_AT_ONCE, false)?;
        let Some((last, _)) = rows.into_iter().next_back() else { return Ok(()) };
        // The smallest key behind it.
        from = [last, vec![0]].concat();
    }
}

/// Counts the events before the first that is damaged.
#[derive(Clone, Copy)]
struct KeptEvents {
    events: u64,
    bytes: u64,
}

/// Reads the events. Returns which are whole, and where the first one is that is not.
fn whole_events(store: &dyn Store) -> Result<(KeptEvents, Option<u64>), StoreError> {
    let (mut kept, mut is_sealed) = (KeptEvents { events: 0, bytes: 0 }, false);
    let total = store.events_len();
    while kept.bytes < total {
        let len = (total - kept.bytes).min(EVENTS_AT_ONCE);
        let bytes = store.read_events(kept.bytes, usize::try_from(len).unwrap_or(usize::MAX))?;
        let (whole, is_whole) = match TenantState::check_events(&bytes, &mut is_sealed) {
            Ok(whole) => (whole, whole > 0),
            Err(whole) => (whole, false),
        };
        let lines = bytes[..whole].iter().filter(|byte| **byte == b'\n').count();
        kept.events += lines as u64;
        kept.bytes += whole as u64;
        if !is_whole {
            return Ok((kept, Some(kept.bytes)));
        }
    }
    Ok((kept, None))
}

/// Names the tenants that have losses.
pub(super) fn named(losses: Vec<Loss>, state: &SystemState) -> Vec<TenantLoss> {
    let named = losses.into_iter().map(|(tenant, damage, events)| TenantLoss {
        id: tenant.to_string(),
        name: state.tenant(tenant).and_then(|it| it.record.as_ref()).map(|it| it.name.clone()),
        damage,
        events,
    });
    named.collect()
}

/// Cuts the event logs that the report names where the damage begins. What is cut off is put into the folder
/// first. One that was cut before stays as it is.
pub(super) async fn cut_events(
    seams: &NodeSeams,
    identity: &Identity,
    report: &Report,
    folder: &str,
) -> Result<(), StoreError> {
    let config = StoresConfig { log: identity.log_id, ..StoresConfig::default() };
    let (disk, executor) = (Arc::clone(&seams.disk), seams.executor.clone());
    let stores = FileStores::open_with(disk, executor, &identity.region, config).await?;
    for loss in &report.tenants {
        let (Some(events), Ok(tenant)) = (&loss.events, loss.id.parse::<TenantId>()) else {
            continue;
        };
        let kept = keep_events(&*seams.disk, &identity.region, tenant, events.bytes, folder);
        kept.map_err(|error| store_error(format!("keep events of {tenant} in {folder}"), error))?;
        let store = stores.open_cut(tenant, events.bytes).await?;
        let Some(position) = store.position() else { continue };
        let mut rows = RowBuffer::new(Some(store));
        let mut state = TenantState::load(&rows)?;
        let changed = state.forget_events(&rows, events.kept, events.bytes)?;
        rows.put(changed);
        rows.put(state.take_dirty_rows());
        let pending = rows.take_pending();
        if let Some(store) = &mut rows.store {
            store.make_durable(pending, position).await?;
        }
    }
    Ok(())
}
