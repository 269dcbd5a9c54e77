//! Where each tenant lives, for every request to look up without asking an actor.
//!
//! Two tables, of the tenants that there are and of those that were deleted, and a list of the groups of this
//! node's region, each behind a lock of its own, which is held for one look or one change. Who has replicas of a
//! tenant's group stands elsewhere (group 0's placements), and may be known here later: a reader then knows of no
//! leader and asks again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{PoisonError, RwLock};

use crate::domain::ids::{Epoch, GroupId, TenantId};
use crate::state::system::group_among;

/// Tenants that came to another group and are still told to watchers: each looks some times a second.
const MOVED_KEPT_MAX: usize = 1024;

/// Where a tenant lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TenantLocation {
    /// Its group.
    pub group: GroupId,
    /// Its epoch.
    pub epoch: Epoch,
}

/// The tenants that exist, as group 0 last said on this node. A hint: the leader of the group decides. Written
/// by the control plane's actor only.
#[derive(Debug, Default)]
pub struct Directory {
    tenants: RwLock<BTreeMap<TenantId, TenantLocation>>,
    /// Where tenants lived that were deleted: their files may still be somewhere.
    deleted: RwLock<BTreeMap<TenantId, GroupId>>,
    /// The groups of this node's region, in order.
    own_groups: RwLock<Vec<GroupId>>,
    /// The last tenants that came to another group, for those who watch the cluster.
    moved: RwLock<Moved>,
}

/// Tenants that came to another group.
#[derive(Debug, Default)]
struct Moved {
    /// How many there were.
    count: u64,
    /// The last of them, and where each came to.
    last: VecDeque<(TenantId, GroupId)>,
}

impl Directory {
    /// Where the tenant lives, if it exists.
    pub fn get(&self, tenant: TenantId) -> Option<TenantLocation> {
        self.tenants.read().unwrap_or_else(PoisonError::into_inner).get(&tenant).copied()
    }

    /// The group that a tenant belongs to, or belonged to before it was deleted.
    pub fn group_of(&self, tenant: TenantId) -> Option<GroupId> {
        let deleted = || {
            let deleted = self.deleted.read().unwrap_or_else(PoisonError::into_inner);
            deleted.get(&tenant).copied()
        };
        self.get(tenant).map(|placed| placed.group).or_else(deleted)
    }

    /// The group of this node's region that stands for a tenant's id, whether the tenant lives in the region or not.
    pub fn group_in_own_region(&self, tenant: TenantId) -> Option<GroupId> {
        group_among(tenant, &self.own_groups.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The tenants that came to another group after so many others had, as far as they are kept, and how many it
    /// were in all.
    pub fn moved_after(&self, count: u64) -> (Vec<(TenantId, GroupId)>, u64) {
        let moved = self.moved.read().unwrap_or_else(PoisonError::into_inner);
        let new = usize::try_from(moved.count.saturating_sub(count)).unwrap_or(usize::MAX);
        let known = moved.last.len().saturating_sub(new);
        (moved.last.iter().skip(known).copied().collect(), moved.count)
    }

    fn note_move(&self, tenant: TenantId, to: GroupId) {
        let mut moved = self.moved.write().unwrap_or_else(PoisonError::into_inner);
        moved.count += 1;
        moved.last.push_back((tenant, to));
        if moved.last.len() > MOVED_KEPT_MAX {
            moved.last.pop_front();
        }
    }

    /// Notes which groups are of this node's region.
    pub(crate) fn set_own_groups(&self, groups: Vec<GroupId>) {
        *self.own_groups.write().unwrap_or_else(PoisonError::into_inner) = groups;
    }

    /// Notes that a tenant of a group was deleted.
    pub(crate) fn set_deleted(&self, tenant: TenantId, group: GroupId) {
        self.deleted.write().unwrap_or_else(PoisonError::into_inner).insert(tenant, group);
    }

    /// The tenants that live in a group.
    pub fn of_group(&self, group: GroupId) -> Vec<TenantId> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        tenants.iter().filter(|(_, at)| at.group == group).map(|(tenant, _)| *tenant).collect()
    }

    /// How many tenants live in each group.
    pub fn count_by_group(&self) -> BTreeMap<GroupId, u64> {
        let mut counts = BTreeMap::new();
        for placed in self.tenants.read().unwrap_or_else(PoisonError::into_inner).values() {
            *counts.entry(placed.group).or_default() += 1;
        }
        counts
    }

    pub(crate) fn clear(&self) {
        self.tenants.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.deleted.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn set(&self, tenant: TenantId, placed: Option<TenantLocation>) {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        let before = match placed {
            Some(placed) => tenants.insert(tenant, placed),
            None => tenants.remove(&tenant),
        };
        if let (Some(before), Some(now)) = (before, placed)
            && before.group != now.group
        {
            self.note_move(tenant, now.group);
        }
    }
}
