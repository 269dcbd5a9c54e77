//! One tenant: how its group is asked, and its state is read.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ractor::ActorRef;
use tokio::sync::OwnedSemaphorePermit;

use super::reach::unanswered;
use crate::cluster::routing::TenantLocation;
use crate::command::{
    Command, CreateJob, Outcome, PutWorkflow, Refusal, Request, StartRun, TenantCommand,
    WorkflowSource,
};
use crate::domain::ids::TenantId;
use crate::ports::Proposals;
use crate::ports::error::CallError;
use crate::ports::seams::Seams;
use crate::services::Call;
use crate::services::executor::Renderer;
use crate::services::locks::Space;
use crate::services::mailbox::{answer, call, catch_up, client_envelope, internal_envelope, until};
use crate::services::tenants::{Activation, TenantMessage, TenantReader};
use crate::state::tenant::Starts;

/// Handle to one tenant, for one admitted request. Holds a place in the tenant's mailbox.
pub struct TenantHandle {
    pub(super) id: TenantId,
    pub(super) placed: TenantLocation,
    pub(super) actor: ActorRef<TenantMessage>,
    pub(super) activation: Arc<Activation>,
    pub(super) log: Arc<dyn Proposals>,
    pub(super) seams: Seams,
    pub(super) workers: Arc<Renderer>,
    pub(super) _permit: OwnedSemaphorePermit,
}

impl TenantHandle {
    /// Does a piece of work that takes long away from the runtime's threads, in the tenant's turn. `None`
    /// when the work panicked.
    ///
    /// # Errors
    /// When its turn has not come by the deadline: the node is busy with what the tenant asked for
    /// before.
    pub async fn work<T: Send + 'static>(
        &self,
        deadline: tokio::time::Instant,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Option<T>, CallError> {
        let done = self.workers.run(self.id, |_| work());
        tokio::time::timeout_at(deadline, done).await.map_err(|_| CallError::NodeBusy)
    }

    /// The tenant's own lock space.
    pub(super) const fn space(&self) -> Space {
        Space { tenant: Some((self.id, self.placed.epoch)), group: self.placed.group }
    }

    /// Proposes a command that starts something, and reads its answer.
    ///
    /// A command that `apply` refuses has been written, synced and replicated like any other: a client
    /// that goes on when a quota is used up would cost as much as one that is let in. So after a refusal
    /// for a quota the next command is looked at first, in the state as it is when everything that was
    /// committed before is applied. It is refused here only if `apply` would refuse it at this moment.
    pub(super) async fn ask_to_start<R>(
        &self,
        call: &Call,
        request: R,
    ) -> Result<R::Answer, CallError>
    where
        R: Request<TenantCommand> + Starting,
    {
        let quota_refused = &self.activation.quota_refused;
        // An attempt that may have been applied is in the log before this one, and not in the state yet.
        if quota_refused.load(Ordering::Relaxed) && !call.maybe_applied {
            self.catch_up(call).await?;
            let (starts, key) = (request.starts(), call.idempotency);
            let refused = move |reader: &mut TenantReader<'_>| {
                reader.state.quota_refusal_now(&starts, key.as_ref())
            };
            if let Some(refusal) = self.read(call, refused).await? {
                return Err(refusal.into());
            }
        }
        let answer = self.ask(call, request).await;
        // A race of calls side by side: whichever stores last, the next refusal sets it again. An error of
        // another kind says nothing about the quotas.
        match &answer {
            Ok(_) => quota_refused.store(false, Ordering::Relaxed),
            Err(CallError::Refused(
                Refusal::QuotaExceeded { .. } | Refusal::MemoryLimit { .. },
            )) => {
                quota_refused.store(true, Ordering::Relaxed);
            }
            Err(_) => {}
        }
        answer
    }

    /// Proposes a command to the tenant's group, and reads its answer.
    pub(super) async fn ask<R: Request<TenantCommand>>(
        &self,
        call: &Call,
        request: R,
    ) -> Result<R::Answer, CallError> {
        if call.idempotency.is_some() {
            self.tell_pause(call).await;
        }
        let command = self.to_tenant(request.into());
        let envelope = client_envelope(&self.seams, &call.cause, call.rpc_id, command);
        let outcome = until(call.deadline, self.log.propose(self.placed.group, envelope)).await?;
        if outcome == Outcome::Refused(Refusal::StaleEpoch) {
            // Deleted since it was looked up, or not served here any more.
            self.read(call, |_| ()).await?;
        }
        answer(outcome)
    }

    /// Tells the tenant how long it was left alone, before a call whose key may have had its time. Who
    /// fails to keeps the key for longer, which does no harm.
    async fn tell_pause(&self, call: &Call) {
        let Some(pause) = self.activation.queue.pause() else { return };
        let Some(leadership) = self.log.leadership(self.placed.group) else { return };
        let now = *leadership.borrow();
        let command = self.to_tenant(TenantCommand::TimePassed(pause));
        let envelope = internal_envelope(&self.seams, Some(now.term), command);
        let told = until(call.deadline, self.log.propose(self.placed.group, envelope)).await;
        tracing::debug!(tenant = %self.id, ?told, "told of a pause");
    }

    const fn to_tenant(&self, command: TenantCommand) -> Command {
        Command::Tenant { tenant: self.id, epoch: self.placed.epoch, command }
    }

    /// Waits until everything that was committed before now has been handed over.
    pub(super) async fn catch_up(&self, call: &Call) -> Result<(), CallError> {
        catch_up(&*self.log, self.placed.group, call.deadline).await
    }

    /// Reads the tenant's state as it is on this node, if it exists (still).
    pub(super) async fn read<T: Send + 'static>(
        &self,
        call_: &Call,
        read: impl FnOnce(&mut TenantReader<'_>) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        let answer = call(&self.actor, call_.deadline, |reply| {
            TenantMessage::Read(Box::new(move |reader| {
                let found = match reader.state {
                    // A read that was answered from what stands still might miss what is done elsewhere.
                    state if state.is_elsewhere() => Err(Refusal::StaleEpoch),
                    state if state.record().is_none() => Err(Refusal::TenantNotFound),
                    _ => Ok(()),
                };
                // Whoever asked may have gone; nobody minds.
                let _ = reply.send(found.map(|()| read(reader)));
            }))
        });
        Ok(answer.await.map_err(unanswered)??)
    }
}

/// A command that starts something.
pub(super) trait Starting {
    /// What has to have room.
    fn starts(&self) -> Starts;
}

impl Starting for StartRun {
    fn starts(&self) -> Starts {
        match &self.workflow {
            WorkflowSource::Named(name) => Starts::NamedRun(name.clone()),
            WorkflowSource::Inline(_) => Starts::Run,
        }
    }
}

impl Starting for CreateJob {
    fn starts(&self) -> Starts {
        if self.run.is_some() { Starts::Run } else { Starts::Definition }
    }
}

impl Starting for PutWorkflow {
    fn starts(&self) -> Starts {
        Starts::Definition
    }
}
