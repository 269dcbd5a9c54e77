//! The registry of tenants.

use serde::{Deserialize, Serialize};

use super::moves::MoveDecision;
use super::{CreatedResource, SystemEffect, SystemState};
use crate::command::{Idempotency, Outcome, Refusal, TenantKnown, TenantWritten};
use crate::domain::ids::{Epoch, GroupId, TenantId};
use crate::domain::region::Region;
use crate::domain::tenant::{TenantChange, TenantRecord};
use crate::domain::time::Timestamp;
use crate::mutants::{self, Mutant};

/// Most tenants, those deleted not counted.
pub const TENANTS_MAX: usize = 100_000;

/// Bytes of the rows of all tenants and tombstones. With what the other tables of group 0 may hold
/// it stays below what a snapshot carries: locks (some 150 MiB), nodes (64 MiB), remembered calls.
pub(super) const TENANTS_BYTES_MAX: u64 = 192 << 20;

/// A tenant in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantEntry {
    /// The group it lives in.
    pub group: GroupId,
    /// Counts its placements.
    pub epoch: Epoch,
    /// Counts its changes.
    pub version: u64,
    /// The version its group is known to have.
    pub confirmed: u64,
    /// Place in the order of creation.
    pub created_seq: u64,
    /// Its record; `None` when it was deleted. The entry stays, as tombstone, for ever.
    pub record: Option<TenantRecord>,
}

impl SystemState {
    /// A tenant, or its tombstone.
    pub fn tenant(&self, id: TenantId) -> Option<&TenantEntry> {
        self.tenants.get(&id)
    }

    /// Every tenant and tombstone.
    pub fn tenants(&self) -> impl Iterator<Item = (&TenantId, &TenantEntry)> {
        self.tenants.iter()
    }

    /// The tenants that exist, in the order of creation, from after `after`.
    pub fn tenants_by_creation(
        &self,
        after: Option<u64>,
    ) -> impl Iterator<Item = (TenantId, &TenantEntry, &TenantRecord)> {
        self.by_creation.range(after.map_or(0, |after| after.saturating_add(1))..).filter_map(
            |(_, id)| {
                let entry = self.tenants.get(id)?;
                Some((*id, entry, entry.record.as_ref()?))
            },
        )
    }

    /// Tenants whose group may not have their newest version.
    pub fn unconfirmed(&self) -> impl Iterator<Item = TenantId> {
        self.unconfirmed.iter().copied()
    }

    pub(super) fn adopt_tenant(&mut self, id: TenantId, entry: TenantEntry) {
        if entry.record.is_some() {
            self.by_creation.insert(entry.created_seq, id);
        }
        if entry.confirmed < entry.version {
            self.unconfirmed.insert(id);
        }
        self.tenants_bytes += super::row_bytes(&(id, &entry));
        if let Some(before) = self.tenants.insert(id, entry) {
            self.tenants_bytes -= super::row_bytes(&(id, &before));
        }
    }

    /// Refuses what would make the table larger than it may be.
    fn room_for_tenant(&self, more_bytes: u64) -> Result<(), Refusal> {
        if !self.bounds_tables || self.tenants_bytes + more_bytes <= TENANTS_BYTES_MAX {
            return Ok(());
        }
        let what = "bytes of tenants' names, descriptions and metadata".to_owned();
        Err(Refusal::TooMany { what, limit: TENANTS_BYTES_MAX })
    }

    /// Changes an entry of the table, which keeps count of its bytes.
    pub(super) fn change_entry<T>(
        &mut self,
        id: TenantId,
        change: impl FnOnce(&mut TenantEntry) -> T,
    ) -> Option<T> {
        let entry = self.tenants.get_mut(&id)?;
        let before = super::row_bytes(&(id, &*entry));
        let changed = change(entry);
        self.tenants_bytes = self.tenants_bytes - before + super::row_bytes(&(id, &*entry));
        Some(changed)
    }

    pub(super) fn create_tenant(
        &mut self,
        id: TenantId,
        record: &TenantRecord,
        fallback_region: Option<&Region>,
        idempotency: Option<&Idempotency>,
        at: Timestamp,
    ) -> (Outcome, Vec<SystemEffect>) {
        let refuse = |refusal| (Outcome::Refused(refusal), Vec::new());
        match self.calls.check(idempotency, self.time.aged()) {
            Err(refusal) => return refuse(refusal),
            Ok(Some(CreatedResource::Tenant(tenant))) => {
                let version = self.tenants.get(&tenant).map_or(0, |entry| entry.version);
                return (
                    Outcome::Tenant(TenantKnown { tenant, version, replayed: true }),
                    Vec::new(),
                );
            }
            Ok(Some(CreatedResource::Node(_) | CreatedResource::Token(_)) | None) => {}
        }
        if self.by_creation.len() >= TENANTS_MAX {
            let limit = TENANTS_MAX as u64;
            return refuse(Refusal::TooMany { what: "tenants".to_owned(), limit });
        }
        let mut record = record.clone();
        if let Some(fallback) = fallback_region.filter(|_| !self.has_region(&record.region)) {
            record.region = fallback.clone();
        }
        let Some(group) = self.group_for(id, &record.region) else {
            return refuse(Refusal::UnknownRegion { region: record.region });
        };
        record.created_at = at;
        record.updated_at = at;
        let outcome = Outcome::TenantSet(TenantWritten {
            tenant: id,
            version: 1,
            record: Box::new(record.clone()),
        });
        let entry = TenantEntry {
            group,
            epoch: Epoch(1),
            version: 1,
            confirmed: 0,
            created_seq: self.meta.tenants_created + 1,
            record: Some(record),
        };
        if let Err(refusal) = self.room_for_tenant(super::row_bytes(&(id, &entry))) {
            return refuse(refusal);
        }
        self.meta.tenants_created += 1;
        self.adopt_tenant(id, entry);
        self.dirty.tenants.insert(id);
        self.calls.remember(idempotency, self.time.aged(), CreatedResource::Tenant(id));
        (outcome, vec![SystemEffect::TenantChanged(id)])
    }

    pub(super) fn update_tenant(
        &mut self,
        id: TenantId,
        change: &TenantChange,
        if_version: Option<u64>,
        at: Timestamp,
    ) -> (Outcome, Vec<SystemEffect>) {
        let entry = match self.existing(id, if_version) {
            Ok(entry) => entry,
            Err(refusal) => return (Outcome::Refused(refusal), Vec::new()),
        };
        let Some(record) = &entry.record else { return (Outcome::Ignored, Vec::new()) };
        let wished = change.region.as_ref();
        if !self.moves_tenants && wished.is_some_and(|region| *region != record.region) {
            let refusal = Refusal::CannotMove { region: record.region.clone() };
            return (Outcome::Refused(refusal), Vec::new());
        }
        // Decided before anything changes: a move that is refused leaves the rest as it was, too.
        let decision = match wished.filter(|_| self.moves_tenants) {
            Some(region) => self.decide_move(id, region),
            None => Ok(MoveDecision::Nothing),
        };
        let decision = match decision {
            Ok(decision) => decision,
            Err(refusal) => return (Outcome::Refused(refusal), Vec::new()),
        };
        let mut after = entry.clone();
        let Some(record) = &mut after.record else { return (Outcome::Ignored, Vec::new()) };
        let changed = change.apply(record);
        if changed {
            record.updated_at = at.max(record.created_at);
            after.version += 1;
            let (old, new) = (super::row_bytes(&(id, entry)), super::row_bytes(&(id, &after)));
            // What makes it smaller is welcome, however full it is.
            if let Some(more) = new.checked_sub(old).filter(|more| *more > 0)
                && let Err(refusal) = self.room_for_tenant(more)
            {
                return (Outcome::Refused(refusal), Vec::new());
            }
        }
        let version = after.version;
        let Some(record) = after.record.clone().map(Box::new) else {
            return (Outcome::Ignored, Vec::new());
        };
        self.change_entry(id, |entry| *entry = after);
        let outcome = Outcome::TenantSet(TenantWritten { tenant: id, version, record });
        let mut effects = self.changed(id, changed);
        effects.extend(self.follow_decision(id, decision));
        (outcome, effects)
    }

    pub(super) fn delete_tenant(
        &mut self,
        id: TenantId,
        if_version: Option<u64>,
    ) -> (Outcome, Vec<SystemEffect>) {
        if let Err(refusal) = self.existing(id, if_version) {
            return (Outcome::Refused(refusal), Vec::new());
        }
        let deleted = self.change_entry(id, |entry| {
            entry.record = None;
            entry.version += 1;
            (entry.version, entry.created_seq)
        });
        let Some((version, created_seq)) = deleted else { return (Outcome::Ignored, Vec::new()) };
        self.by_creation.remove(&created_seq);
        let mut effects = self.changed(id, true);
        effects.extend(self.call_off(id));
        (Outcome::Tenant(TenantKnown { tenant: id, version, replayed: false }), effects)
    }

    pub(super) fn confirm_tenant(
        &mut self,
        id: TenantId,
        version: u64,
    ) -> (Outcome, Vec<SystemEffect>) {
        let is_confirmed = self.change_entry(id, |entry| {
            // No group has a version that was never decided.
            entry.confirmed = entry.confirmed.max(version.min(entry.version));
            entry.confirmed >= entry.version
        });
        let Some(is_confirmed) = is_confirmed else { return (Outcome::Ignored, Vec::new()) };
        if is_confirmed {
            self.unconfirmed.remove(&id);
            if mutants::is(Mutant::ForgetTombstones) {
                self.tenants.retain(|other, entry| *other != id || entry.record.is_some());
            }
        }
        self.dirty.tenants.insert(id);
        (Outcome::Done, Vec::new())
    }

    /// The tenant, if it exists and is at the version asked for.
    fn existing(&self, id: TenantId, if_version: Option<u64>) -> Result<&TenantEntry, Refusal> {
        let entry = self.tenants.get(&id).filter(|entry| entry.record.is_some());
        let entry = entry.ok_or(Refusal::TenantNotFound)?;
        if if_version.is_some_and(|version| version != entry.version) {
            return Err(Refusal::PreconditionFailed { current: entry.version });
        }
        Ok(entry)
    }

    pub(super) fn changed(&mut self, id: TenantId, changed: bool) -> Vec<SystemEffect> {
        if !changed {
            return Vec::new();
        }
        self.unconfirmed.insert(id);
        self.dirty.tenants.insert(id);
        vec![SystemEffect::TenantChanged(id)]
    }

    /// The group of a tenant in a region. Always the same one, as long as the region has its groups.
    pub(super) fn group_for(&self, id: TenantId, region: &Region) -> Option<GroupId> {
        group_among(id, &self.groups_of(region))
    }

    /// The groups of a region, in order.
    pub fn groups_of(&self, region: &Region) -> Vec<GroupId> {
        let in_region = self.groups.iter().filter(|(_, placement)| placement.region == *region);
        in_region.map(|(group, _)| *group).collect()
    }
}

/// The one of a region's groups that a tenant has there: chosen by its id, which is random, so that tenants
/// spread. What is left of a tenant in a region that it moved away from is of this group.
pub fn group_among(id: TenantId, groups: &[GroupId]) -> Option<GroupId> {
    let chosen = id.uuid().as_u128().checked_rem(groups.len() as u128)?;
    groups.get(usize::try_from(chosen).ok()?).copied()
}
