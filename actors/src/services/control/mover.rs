//! Carries out the moves of tenants, on the node that leads the source.
//!
//! Whatever has to be known stands in group 0 (`state/system/moves.rs`): a leader that goes on after another begins a
//! new attempt, which makes whatever the other does not count, and copies anew. The source works on while most of it
//! is copied, and stands still for the rest. When the rest does not arrive in time, the attempt is given up in
//! group 0 first, and only then the source thaws.
//!
//! The data goes through the target's log, piece by piece: so it is durable on a quorum of the target when the last
//! piece is answered, and the target's replicas catch up on it as on everything else.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::Control;
use super::copying::{Copied, Pieces};
use super::hindrance::Hindrance;
use super::target_room::TargetRoom;
use crate::command::{
    Command, MoveStep, MoveTenant, Outcome, StepMove, SystemCommand, TenantCommand,
};
use crate::domain::ids::{Epoch, GroupId, RaftId, StateMachineId, TenantId};
use crate::ports::error::CallError;
use crate::ports::{ApplySink, Dump};
use crate::services::mailbox::{internal_envelope, until};
use crate::services::tenants::Registry;
use crate::state::system::{MovePhase, SystemState, TenantMove};

/// Tenants that a node copies at once: of each a hash of every row is in memory.
const COPIES_AT_ONCE_MAX: usize = 4;
/// Longest time for a step of a move, and for a piece.
const STEP_DEADLINE: Duration = Duration::from_secs(10);
/// The source stands still when what it had not sent before is less, bytes, ...
const REST_BYTES: usize = 1 << 20;
/// ... or after so many readings: a tenant that writes all the time is never done.
const READINGS_MAX: u32 = 4;
/// Longest time that the source stands still before the attempt is given up, beside the time for its bytes.
const FROZEN_MAX: Duration = Duration::from_secs(2);
/// Bytes that are read and compared in a second at least, while the source stands still.
const FROZEN_BYTES_A_SECOND: usize = 16 << 20;
/// Of the bytes that a tenant takes, one in so many more that each node of the target is to have: for its log, which has
/// every piece as well until it is cut.
const SPARE_DIVISOR: u64 = 4;
/// The nodes of the target are asked again for their room after so many bytes: less than they keep for the log.
const LOOK_EVERY_BYTES: u64 = 1 << 20;
/// Wait before the next attempt, at first.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Wait before the next attempt, at most.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Attempts of one leader after which it calls the move off. They take two minutes, or more where each has to wait for
/// a target that does not answer. Where the call was lost, it calls off again after as many attempts more.
const ATTEMPTS_MAX: u32 = 30;

/// The tenants whose moves a node carries out.
#[derive(Debug)]
pub(super) struct UnderWay {
    tenants: Mutex<BTreeSet<TenantId>>,
    /// Held for a copy, and for nothing else: a source has to thaw however many other moves do not come further.
    copies: Semaphore,
}

impl Default for UnderWay {
    fn default() -> Self {
        Self { tenants: Mutex::default(), copies: Semaphore::new(COPIES_AT_ONCE_MAX) }
    }
}

impl UnderWay {
    /// Takes the move of a tenant, until the guard is dropped.
    fn begin(self: &Arc<Self>, tenant: TenantId) -> Option<Guard> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.insert(tenant).then(|| Guard(Arc::clone(self), tenant))
    }
}

struct Guard(Arc<UnderWay>, TenantId);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.tenants.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

/// Carries out moves.
#[derive(Clone)]
pub(super) struct Mover {
    pub control: Control,
    pub registry: Arc<Registry>,
    pub under_way: Arc<UnderWay>,
    pub room: TargetRoom,
}

impl Mover {
    /// Carries out the move of a tenant in a task of its own, unless that is done already.
    pub fn begin(self, tenant: TenantId, source: GroupId) {
        let Some(guard) = self.under_way.begin(tenant) else { return };
        tokio::spawn(async move {
            let _guard = guard;
            self.carry_out(tenant, source).await;
        });
    }

    /// Removes what is left here of a tenant that lives in another region.
    pub async fn remove_left(&self, tenant: TenantId, group: GroupId) {
        let Ok(Some((epoch, it))) = self.placed(tenant).await else { return };
        if it.as_ref().is_some_and(TenantMove::is_under_way) || self.lives_in(tenant, group).await {
            return;
        }
        let copy = it.map_or(epoch, |it| it.epoch);
        for (epoch, command) in [(copy, MoveTenant::Discard), (epoch, MoveTenant::Leave)] {
            if let Err(error) = self.tell(group, tenant, epoch, command).await {
                tracing::warn!(%tenant, %error, "a tenant that moved still has files here");
            }
        }
        // A replica whose files are damaged applies nothing of that, and would hold the log for ever. Nothing of
        // its files is needed: the tenant lives elsewhere, as group 0 has just said.
        if let Some(activation) = self.registry.activation(group, tenant) {
            activation.remove_if_damaged();
        }
    }

    /// Tells whether a tenant lives in a group, or that cannot be told.
    async fn lives_in(&self, tenant: TenantId, group: GroupId) -> bool {
        let find = move |state: &SystemState| state.tenant(tenant).map(|it| it.group);
        let found = self.control.read_linearizable(Instant::now() + STEP_DEADLINE, find).await;
        !matches!(found, Ok(Some(found)) if found != group)
    }

    async fn placed(
        &self,
        tenant: TenantId,
    ) -> Result<Option<(Epoch, Option<TenantMove>)>, CallError> {
        let find = move |state: &SystemState| {
            let epoch = state.tenant(tenant)?.epoch;
            Some((epoch, state.tenant_move(tenant).cloned()))
        };
        self.control.read_linearizable(Instant::now() + STEP_DEADLINE, find).await
    }

    async fn carry_out(&self, tenant: TenantId, source: GroupId) {
        let mut wait = RETRY_MIN;
        for attempt in 1.. {
            let Err(error) = self.take_steps(tenant, source).await else { return };
            if self.control.term_here(source).is_none() {
                // Whoever leads the source now goes on.
                tracing::info!(%tenant, %error, "this node does not lead the source of a move any more");
                return;
            }
            tracing::warn!(%tenant, %error, attempt, "a tenant's move does not come further yet");
            if attempt % ATTEMPTS_MAX == 0 || error.is_hopeless() {
                self.call_off(tenant, &error).await;
            }
            sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// Takes steps until the move is over.
    async fn take_steps(&self, tenant: TenantId, source: GroupId) -> Result<(), Hindrance> {
        loop {
            let Some((_, Some(it))) = self.placed(tenant).await? else { return Ok(()) };
            if it.from != source {
                return Ok(());
            }
            match it.phase {
                MovePhase::Copying => self.copy(tenant, &it).await?,
                MovePhase::Leaving => self.leave(tenant, &it).await?,
                MovePhase::Undoing => self.undo(tenant, &it).await?,
                MovePhase::Over => return Ok(()),
            }
        }
    }

    async fn call_off(&self, tenant: TenantId, why: &Hindrance) {
        let Ok(Some((_, Some(it)))) = self.placed(tenant).await else { return };
        tracing::warn!(%tenant, region = %it.region, %why, "a tenant's move is called off");
        if let Err(error) = self.step(tenant, it.epoch, MoveStep::Abort).await {
            tracing::warn!(%tenant, %error, "the move could not be called off");
        }
    }

    /// Makes an attempt: copies the tenant, and has group 0 give it to the target.
    async fn copy(&self, tenant: TenantId, it: &TenantMove) -> Result<(), Hindrance> {
        let term = self.control.term_here(it.from).ok_or(CallError::NoLeader)?;
        // An attempt of its own: none of another leader, nor of this one before, counts from here on.
        self.step(tenant, it.epoch, MoveStep::Retry).await?;
        let epoch = Epoch(it.epoch.0 + 1);
        self.tell_here(it.from, term, tenant, epoch, MoveTenant::Thaw).await?;
        // What group 0 decided before has to be in the copy, or be told later; a tenant that its group does not
        // know yet cannot be read.
        let deadline = Instant::now() + STEP_DEADLINE;
        let synced = self.control.sync_tenant(tenant, None, deadline).await;
        synced.map_err(Hindrance::of_source)?;
        // The source works on while it waits for its turn. Nobody closes the semaphore.
        let _turn = self.under_way.copies.acquire().await.ok();
        let mut copied = Copied::default();
        let mut largest = 0;
        for _ in 0..READINGS_MAX {
            let bytes = self.send(tenant, it, epoch, &mut copied, false).await?;
            largest = largest.max(bytes.read);
            if bytes.sent < REST_BYTES {
                break;
            }
        }
        self.tell_here(it.from, term, tenant, epoch, MoveTenant::Freeze).await?;
        let began = Instant::now();
        let size = u32::try_from(largest / FROZEN_BYTES_A_SECOND).unwrap_or(u32::MAX);
        let within = FROZEN_MAX + Duration::from_secs(size.into());
        let committed = timeout(within, async {
            self.send(tenant, it, epoch, &mut copied, true).await?;
            self.step(tenant, epoch, MoveStep::Commit).await
        });
        let committed = committed.await;
        let committed = committed.unwrap_or(Err(Hindrance::Late("the last of the copy", within)));
        if committed.is_err() {
            self.thaw(tenant, it, term, epoch).await;
        } else {
            tracing::info!(%tenant, region = %it.region, stood_still = ?began.elapsed(), "a tenant has moved");
        }
        committed
    }

    /// Has the source go on, once group 0 has given the attempt up. Where it has committed it instead, or does not
    /// answer, the source stays as it is: the next look at the move tells.
    async fn thaw(&self, tenant: TenantId, it: &TenantMove, term: u64, epoch: Epoch) {
        let thawed = async {
            self.step(tenant, epoch, MoveStep::Retry).await?;
            let next = Epoch(epoch.0 + 1);
            self.tell_here(it.from, term, tenant, next, MoveTenant::Thaw).await
        };
        if let Err(error) = thawed.await {
            tracing::warn!(%tenant, %error, "a tenant stands still until it is known whether it has moved");
        }
    }

    /// Wakes the tenant in the target, and removes it from the source.
    async fn leave(&self, tenant: TenantId, it: &TenantMove) -> Result<(), Hindrance> {
        let deadline = Instant::now() + STEP_DEADLINE;
        self.control.sync_tenant(tenant, None, deadline).await?;
        self.tell(it.from, tenant, it.epoch, MoveTenant::Leave).await?;
        self.step(tenant, it.epoch, MoveStep::Finish).await
    }

    /// Has the source go on, and removes the copy.
    async fn undo(&self, tenant: TenantId, it: &TenantMove) -> Result<(), Hindrance> {
        self.tell(it.from, tenant, Epoch(it.epoch.0 + 1), MoveTenant::Thaw).await?;
        self.tell(it.to, tenant, it.epoch, MoveTenant::Discard).await?;
        self.step(tenant, it.epoch, MoveStep::Finish).await
    }

    /// Reads the source, and sends the target what it lacks, part by part.
    async fn send(
        &self,
        tenant: TenantId,
        it: &TenantMove,
        epoch: Epoch,
        copied: &mut Copied,
        is_last: bool,
    ) -> Result<Bytes, Hindrance> {
        let part = StateMachineId::Tenant(tenant);
        let dump = self.registry.dump(it.from, part, copied.held()).await?;
        // Nothing at all is no tenant.
        let mut dump = dump.ok_or(CallError::Starting { what: "the tenant" })?;
        if copied.is_empty() {
            self.look_for_room(tenant, it, dump.bytes + dump.bytes / SPARE_DIVISOR).await?;
        }
        let (mut bytes, mut unseen) = (Bytes { read: 0, sent: 0 }, 0);
        copied.begin();
        while let Some(part) = dump.parts.next().await {
            let part = part?;
            bytes.read += part.rows.iter().map(Dump::cost).sum::<usize>();
            let sent = self.send_pieces(tenant, it, epoch, copied.take(part)?).await?;
            bytes.sent += sent;
            unseen += sent as u64;
            if unseen >= LOOK_EVERY_BYTES {
                let look = self.room.look(&self.nodes_of(it.to).await?, unseen).await;
                look.map_err(|error| Hindrance::Filled(error.to_string()))?;
                unseen = 0;
            }
        }
        bytes.sent += self.send_pieces(tenant, it, epoch, copied.end(is_last)).await?;
        Ok(bytes)
    }

    /// Finds out whether the target has room for the tenant. What an earlier attempt has left there may be what takes
    /// it, and goes then.
    async fn look_for_room(
        &self,
        tenant: TenantId,
        it: &TenantMove,
        needed: u64,
    ) -> Result<(), Hindrance> {
        let nodes = self.nodes_of(it.to).await?;
        if let Err(error) = self.room.look(&nodes, needed).await {
            if let Err(why) = self.tell(it.to, tenant, it.epoch, MoveTenant::Discard).await {
                tracing::debug!(%tenant, %why, "what an earlier attempt has left there stays");
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Lists the nodes that have a replica of a group.
    async fn nodes_of(&self, group: GroupId) -> Result<Vec<RaftId>, CallError> {
        let find = move |state: &SystemState| {
            state.groups().get(&group).map_or_else(Vec::new, |placed| placed.replicas.clone())
        };
        self.control.read(Instant::now() + STEP_DEADLINE, find).await
    }

    /// Sends pieces, and returns how many bytes they hold.
    async fn send_pieces(
        &self,
        tenant: TenantId,
        it: &TenantMove,
        epoch: Epoch,
        pieces: Pieces<'_>,
    ) -> Result<usize, Hindrance> {
        let mut sent = 0;
        for piece in pieces {
            let rows = piece.rows.iter().filter_map(|(_, value)| value.as_ref()).map(Vec::len);
            sent += rows.sum::<usize>() + piece.begun.len() + piece.events.len();
            let told = self.tell(it.to, tenant, epoch, MoveTenant::TakeIn(piece)).await;
            told.map_err(|error| match error {
                Hindrance::Call(full @ CallError::DiskFull) => Hindrance::Filled(full.to_string()),
                error => error,
            })?;
        }
        Ok(sent)
    }

    /// Has group 0 take a step. It may be decided about twice.
    async fn step(&self, tenant: TenantId, epoch: Epoch, step: MoveStep) -> Result<(), Hindrance> {
        let deadline = Instant::now() + STEP_DEADLINE;
        let command = SystemCommand::StepMove(StepMove { tenant, epoch, step });
        match self.control.send(deadline, command).await? {
            Outcome::Done => Ok(()),
            _ => Err(Hindrance::Superseded("a step of the move")),
        }
    }

    /// Tells a group of a step that may come to it at any time, and twice.
    async fn tell(
        &self,
        group: GroupId,
        tenant: TenantId,
        epoch: Epoch,
        command: MoveTenant,
    ) -> Result<(), Hindrance> {
        let deadline = Instant::now() + STEP_DEADLINE;
        let make = || {
            let command = TenantCommand::Move(command.clone());
            let command = Command::Tenant { tenant, epoch, command };
            let envelope = internal_envelope(&self.control.seams, None, command);
            std::future::ready(Ok(Some(envelope)))
        };
        match self.control.router.propose(group, deadline, make).await? {
            Some(Outcome::Done) => Ok(()),
            _ => Err(Hindrance::Superseded("what a group was told")),
        }
    }

    /// Tells the source of a step that counts only while this node leads it: a step that was late would freeze what
    /// another leader has thawed.
    async fn tell_here(
        &self,
        group: GroupId,
        term: u64,
        tenant: TenantId,
        epoch: Epoch,
        command: MoveTenant,
    ) -> Result<(), Hindrance> {
        let deadline = Instant::now() + STEP_DEADLINE;
        let command = TenantCommand::Move(command);
        let command = Command::Tenant { tenant, epoch, command };
        let envelope = internal_envelope(&self.control.seams, Some(term), command);
        let told = until(deadline, self.control.log.propose(group, envelope)).await;
        match told.map_err(Hindrance::of_source)? {
            Outcome::Done => Ok(()),
            _ => Err(Hindrance::Superseded("what the source was told")),
        }
    }
}

/// Bytes of one reading.
struct Bytes {
    /// Of all rows.
    read: usize,
    /// Of what the target lacked.
    sent: usize,
}
