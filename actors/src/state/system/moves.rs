//! Tenants that move to another region: group 0 decides, the two groups follow.
//!
//! # The problem
//!
//! A tenant lives in one group. Its two groups have two logs and no transaction over both, any node may end at
//! any moment, and the tenant is to be in one place whatever happens.
//!
//! # The protocol
//!
//! ```text
//! group 0                     source group                 target group
//! UpdateTenant(region)
//!   Copying, epoch e+1
//! Retry: epoch e+2       <--- the leader of the source begins an attempt
//!                             (works on) ---- pieces ----> TakeIn 0, 1, 2, ..    durable, asleep
//!                             Freeze(e+2)
//!                             (stands still) - what is new -> TakeIn n, the last
//! Commit(e+2): the directory names the target, the region changes, Leaving
//!                                                          Set(e+2, version): wakes what was taken in
//!                             Leave(e+2): its files go
//! Finish
//! ```
//!
//! The leader of the source's group carries all of it out (`services/control/mover.rs`), whoever that is: what has
//! to be known stands here. A leader that goes on after another begins a new attempt, in the next epoch, and
//! copies anew.
//!
//! # Invariants
//!
//! - `Commit` counts only for the present attempt. An attempt that was given up cannot be committed later, so
//!   the source may thaw as soon as group 0 has the next attempt, or the end of the move.
//! - Between `Freeze` and `Commit`, or the next attempt, neither group changes the tenant. After `Commit` the source
//!   refuses everything until its data is gone: a node with an old directory is told to look again.
//! - What the target has taken in does nothing before the `Set` that follows `Commit`: no step is performed and no
//!   lease ends at both groups.
//! - No epoch is used twice for one tenant: the last one stays here when a move has been called off.
//! - A tenant that is deleted while it moves stays where it is, and is deleted there.

use serde::{Deserialize, Serialize};

use super::{SystemEffect, SystemState};
use crate::command::{MoveStep, Outcome, Refusal, StepMove};
use crate::domain::ids::{Epoch, GroupId, TenantId};
use crate::domain::region::Region;
use crate::domain::time::Timestamp;

/// A tenant's move to another group, the last that there was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantMove {
    /// The source.
    pub from: GroupId,
    /// The target.
    pub to: GroupId,
    /// The region of the target.
    pub region: Region,
    /// The epoch that the present attempt gives the tenant.
    pub epoch: Epoch,
    /// How far the move has come.
    pub phase: MovePhase,
}

/// How far a move has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MovePhase {
    /// The tenant lives in the source and is being copied.
    Copying,
    /// The tenant lives in the target. Its data in the source is still to go.
    Leaving,
    /// The move was called off: the source is to thaw, the copy is still to go.
    Undoing,
    /// The move was called off and nothing is left of it but its epoch.
    Over,
}

impl TenantMove {
    /// Tells whether something is still to be done.
    pub fn is_under_way(&self) -> bool {
        self.phase != MovePhase::Over
    }
}

/// What a change of a tenant's region comes to.
pub(super) enum MoveDecision {
    /// The tenant is there, or on its way.
    Nothing,
    /// The move under way is called off.
    CallOff,
    /// A move begins.
    Begin(TenantMove),
}

impl SystemState {
    /// The move of a tenant, the last that there was.
    pub fn tenant_move(&self, id: TenantId) -> Option<&TenantMove> {
        self.moves.get(&id)
    }

    /// The moves that are not over.
    pub fn moves(&self) -> impl Iterator<Item = (TenantId, &TenantMove)> {
        self.moves.iter().filter(|(_, it)| it.is_under_way()).map(|(id, it)| (*id, it))
    }

    /// Decides what it comes to that a tenant is to be in `region`.
    pub(super) fn decide_move(
        &self,
        id: TenantId,
        region: &Region,
    ) -> Result<MoveDecision, Refusal> {
        let entry = self.tenants.get(&id);
        let (entry, record) = entry
            .and_then(|entry| Some((entry, entry.record.as_ref()?)))
            .ok_or(Refusal::TenantNotFound)?;
        let is_present = record.region == *region;
        let last = self.moves.get(&id);
        match last.filter(|it| it.is_under_way()) {
            Some(it) if it.phase == MovePhase::Copying && is_present => {
                return Ok(MoveDecision::CallOff);
            }
            Some(it) if it.phase == MovePhase::Copying && it.region == *region => {
                return Ok(MoveDecision::Nothing);
            }
            _ if is_present => return Ok(MoveDecision::Nothing),
            Some(it) => return Err(Refusal::Moving { region: it.region.clone() }),
            None => {}
        }
        let to = self.group_for(id, region).filter(|_| self.has_region(region));
        let to = to.ok_or_else(|| Refusal::UnknownRegion { region: region.clone() })?;
        let used = last.map_or(entry.epoch, |it| it.epoch.max(entry.epoch));
        let (from, epoch) = (entry.group, Epoch(used.0 + 1));
        let phase = MovePhase::Copying;
        Ok(MoveDecision::Begin(TenantMove { from, to, region: region.clone(), epoch, phase }))
    }

    /// Does what was decided.
    pub(super) fn follow_decision(
        &mut self,
        id: TenantId,
        decision: MoveDecision,
    ) -> Vec<SystemEffect> {
        match decision {
            MoveDecision::Nothing => Vec::new(),
            MoveDecision::CallOff => self.call_off(id),
            MoveDecision::Begin(it) => self.keep_move(id, Some(it)),
        }
    }

    /// Calls off the move of a tenant that has not gone yet.
    pub(super) fn call_off(&mut self, id: TenantId) -> Vec<SystemEffect> {
        match self.moves.get(&id).cloned() {
            Some(it) if it.phase == MovePhase::Copying => {
                self.keep_move(id, Some(TenantMove { phase: MovePhase::Undoing, ..it }))
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn step_move(
        &mut self,
        StepMove { tenant, epoch, step }: &StepMove,
        at: Timestamp,
    ) -> (Outcome, Vec<SystemEffect>) {
        let ignored = (Outcome::Ignored, Vec::new());
        let Some(it) = self.moves.get(tenant).cloned() else { return ignored };
        // The same step may come twice: the second time it says what the first one did.
        if it.epoch != *epoch {
            return ignored;
        }
        match (step, it.phase) {
            (MoveStep::Retry, MovePhase::Copying) => {
                let next = TenantMove { epoch: Epoch(epoch.0 + 1), ..it };
                (Outcome::Done, self.keep_move(*tenant, Some(next)))
            }
            (MoveStep::Commit, MovePhase::Copying) => self.commit_move(*tenant, it, at),
            (MoveStep::Commit, MovePhase::Leaving) => (Outcome::Done, Vec::new()),
            (MoveStep::Abort, MovePhase::Copying) => (Outcome::Done, self.call_off(*tenant)),
            (MoveStep::Abort, MovePhase::Undoing) => (Outcome::Done, Vec::new()),
            // The tenant has the epoch itself.
            (MoveStep::Finish, MovePhase::Leaving) => {
                (Outcome::Done, self.keep_move(*tenant, None))
            }
            (MoveStep::Finish, MovePhase::Undoing) => {
                let exists = self.tenants.get(tenant).is_some_and(|it| it.record.is_some());
                let over = exists.then_some(TenantMove { phase: MovePhase::Over, ..it });
                (Outcome::Done, self.keep_move(*tenant, over))
            }
            _ => ignored,
        }
    }

    /// Gives a tenant to the target. From here on the group's directory names it, and the source refuses.
    fn commit_move(
        &mut self,
        id: TenantId,
        it: TenantMove,
        at: Timestamp,
    ) -> (Outcome, Vec<SystemEffect>) {
        let given = self.change_entry(id, |entry| {
            let record = entry.record.as_mut()?;
            record.region = it.region.clone();
            record.updated_at = at.max(record.created_at);
            (entry.group, entry.epoch) = (it.to, it.epoch);
            // The new version is what wakes the tenant in the target: it is sent until it is confirmed.
            entry.version += 1;
            Some(())
        });
        if given.flatten().is_none() {
            return (Outcome::Ignored, Vec::new());
        }
        let mut effects = self.changed(id, true);
        effects.extend(self.keep_move(id, Some(TenantMove { phase: MovePhase::Leaving, ..it })));
        (Outcome::Done, effects)
    }

    fn keep_move(&mut self, id: TenantId, it: Option<TenantMove>) -> Vec<SystemEffect> {
        match it {
            Some(it) => self.moves.insert(id, it),
            None => self.moves.remove(&id),
        };
        self.dirty.moves.insert(id);
        vec![SystemEffect::MoveChanged(id)]
    }

    /// Forgets all moves, and returns the epoch of each: nobody is left who could carry them out.
    pub(super) fn forget_moves(&mut self) -> std::collections::BTreeMap<TenantId, Epoch> {
        self.dirty.moves.extend(self.moves.keys());
        std::mem::take(&mut self.moves).into_iter().map(|(id, it)| (id, it.epoch)).collect()
    }
}
