//! One tenant's own resources.

use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ractor::ActorRef;
use tokio::sync::OwnedSemaphorePermit;

use super::tenants::unanswered;
use crate::cluster::routing::TenantLocation;
use crate::command::{
    CancelRun, Command, CreateJob, DeleteWorkflow, JobCreated, Outcome, PutWorkflow, Refusal,
    Request, RunStarted, StartRun, TenantCommand, WorkflowSource, WorkflowWritten,
};
use crate::domain::ids::{JobId, RunId, TenantId};
use crate::domain::json::Json;
use crate::domain::page::{Page, PageBudget, PageRequest};
use crate::domain::run::RunStatus;
use crate::domain::tenant::TenantStatus;
use crate::domain::views::{JobView, RunView, WorkflowView};
use crate::domain::workflow::Workflow;
#[cfg(feature = "mutants")]
use crate::mutants::{self, Mutant};
use crate::ports::error::CallError;
use crate::ports::seams::Seams;
use crate::ports::{Proposals, StoreError};
use crate::services::executor::Renderer;
use crate::services::locks::Space;
use crate::services::mailbox::{answer, call, client_envelope, internal_envelope, until};
use crate::services::tenants::{Activation, TenantMessage, TenantReader};
use crate::services::{Call, Created};
use crate::state::tenant::{NamedWorkflow, Starts, checked_event, job_view, run_view};

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

impl std::fmt::Debug for TenantHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TenantHandle({})", self.id)
    }
}

/// What a new run is made of.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Its workflow.
    pub workflow: WorkflowSource,
    /// Its input.
    pub input: Json,
}

/// What a new job is made of.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Name shown.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Its workflow.
    pub workflow: Arc<Workflow>,
    /// Who makes it, as the client says.
    pub created_by: Option<String>,
    /// Whether a run is started at once.
    pub execute: bool,
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

    /// Starts a run.
    ///
    /// # Errors
    /// When the tenant may not, a quota is used up, or it came to no outcome by the deadline.
    pub async fn start_run(&self, call: &Call, new: NewRun) -> Result<Created<RunView>, CallError> {
        #[cfg(feature = "mutants")]
        if mutants::is(Mutant::QuotaBeforeApply) {
            let key = call.idempotency;
            self.read(call, move |reader| reader.state.may_begin(key.as_ref())).await??;
        }
        let command = StartRun {
            run: RunId::from_uuid(self.seams.uuid()),
            work_item: self.seams.uuid().to_string(),
            workflow: new.workflow,
            input: new.input,
            idempotency: call.idempotency,
        };
        let RunStarted { run, replayed } = self.ask_to_start(call, command).await?;
        let resource = self.view_run(call, run).await.map_err(CallError::after_write)?;
        Ok(Created { resource, replayed })
    }

    /// One run.
    ///
    /// # Errors
    /// When there is none with this id, or no answer came by the deadline.
    pub async fn run(&self, call: &Call, id: RunId) -> Result<RunView, CallError> {
        self.catch_up(call).await?;
        self.view_run(call, id).await
    }

    /// One run, once it has ended or `wait` is over.
    ///
    /// # Errors
    /// When there is none with this id, or no answer came by the deadline.
    pub async fn wait_run(
        &self,
        call_: &Call,
        id: RunId,
        wait: Duration,
    ) -> Result<RunView, CallError> {
        self.catch_up(call_).await?;
        let until = tokio::time::Instant::now() + wait;
        // The run may end before the actor is asked: the actor looks whether it is live, and answers at
        // once where it is not.
        match call(&self.actor, until, |reply| TenantMessage::WaitRun(id, reply)).await {
            Ok(()) | Err(CallError::DeadlineExceeded) => {}
            Err(error) => return Err(unanswered(error)),
        }
        let mut late = call_.clone();
        late.deadline = late.deadline.max(tokio::time::Instant::now() + ANSWER_AFTER_WAIT);
        self.view_run(&late, id).await
    }

    /// Runs, newest first.
    ///
    /// # Errors
    /// When the tenant's files cannot be read, or no answer came by the deadline.
    pub async fn runs(
        &self,
        call: &Call,
        status: Option<RunStatus>,
        page: PageRequest,
    ) -> Result<Page<RunView>, CallError> {
        self.catch_up(call).await?;
        let before = page.cursor.as_deref().and_then(|cursor| cursor.parse().ok());
        let (runs, next) = self
            .read(call, move |reader| {
                let is_active = is_active(reader);
                let show = |run: &crate::state::tenant::Run| run_view(run, is_active);
                reader.state.runs_before(reader.rows, before, status, page.limit, show)
            })
            .await??;
        Ok(Page { items: runs, next_cursor: next.map(|seq| seq.to_string()) })
    }

    /// The events of a run, each one JSON object as it stands in `events.jsonl`, but for its checksum.
    /// What clients did to it (`audit`) is in the tenant's log alone.
    ///
    /// # Errors
    /// When there is no such run, the tenant's files cannot be read, or no answer came by the
    /// deadline.
    pub async fn run_events(
        &self,
        call: &Call,
        id: RunId,
        page: PageRequest,
    ) -> Result<Page<Json>, CallError> {
        self.catch_up(call).await?;
        let from: usize = page.cursor.as_deref().and_then(|at| at.parse().ok()).unwrap_or(0);
        let events = self
            .read(call, move |reader| {
                let Some(run) = reader.state.run(reader.rows, id)? else { return Ok(None) };
                let (mut room, mut lines) = (PageBudget::new(page.limit), Vec::new());
                for (at, span) in run.events.iter().enumerate().skip(from) {
                    let line = reader.rows.read_events(span.offset, span.bytes());
                    let text = line.and_then(|line| {
                        checked_event(&line, *span).ok_or_else(|| damaged_event(span.offset))
                    });
                    let text = match text {
                        Ok(text) => text,
                        Err(error) => {
                            // That there is no room to open the files is no damage.
                            if !matches!(error, StoreError::Full) {
                                reader.damage.get_or_insert_with(|| error.clone());
                            }
                            return Err(error);
                        }
                    };
                    if is_audit(&text) {
                        continue;
                    }
                    let line = Json::from_text(text);
                    if !room.take(&line) {
                        return Ok(Some((lines, Some(at))));
                    }
                    lines.push(line);
                }
                Ok(Some((lines, None)))
            })
            .await?;
        let (items, next) = events
            .map_err(|error: StoreError| CallError::from(error))?
            .ok_or(Refusal::RunNotFound)?;
        Ok(Page { items, next_cursor: next.map(|at| at.to_string()) })
    }

    /// Stops a run.
    ///
    /// # Errors
    /// When there is no such run, it has ended, or it came to no outcome by the deadline.
    pub async fn cancel_run(
        &self,
        call: &Call,
        run: RunId,
        reason: Option<String>,
    ) -> Result<RunView, CallError> {
        match self.ask(call, CancelRun { run, reason }).await {
            Ok(()) => self.view_run(call, run).await.map_err(CallError::after_write),
            // The state knows live runs only: the rows tell whether it ever was.
            Err(CallError::Refused(Refusal::RunNotFound)) => {
                let status = self.view_run(call, run).await?.status;
                Err(Refusal::RunEnded { status }.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a named workflow (version 1 means it is new).
    ///
    /// # Errors
    /// When the tenant may not, it is at another version than `if_version`, or it came to no
    /// outcome by the deadline.
    pub async fn put_workflow(
        &self,
        call: &Call,
        name: String,
        workflow: Arc<Workflow>,
        if_version: Option<u64>,
    ) -> Result<WorkflowView, CallError> {
        let spec = workflow.json();
        let command = PutWorkflow { name: name.clone(), workflow, if_version };
        let WorkflowWritten { version, created_at } = self.ask_to_start(call, command).await?;
        Ok(WorkflowView { name, version, spec, created_at })
    }

    /// One named workflow.
    ///
    /// # Errors
    /// When there is none with this name, or no answer came by the deadline.
    pub async fn workflow(&self, call: &Call, name: &str) -> Result<WorkflowView, CallError> {
        self.catch_up(call).await?;
        let wanted = name.to_owned();
        let found = self
            .read(call, move |reader| {
                reader.state.workflows().get(&wanted).map(|named| workflow_view(&wanted, named))
            })
            .await?;
        Ok(found.ok_or_else(|| Refusal::WorkflowNotFound { name: name.to_owned() })?)
    }

    /// Named workflows, by name.
    ///
    /// # Errors
    /// When no answer came by the deadline.
    pub async fn workflows(
        &self,
        call: &Call,
        page: PageRequest,
    ) -> Result<Page<WorkflowView>, CallError> {
        self.catch_up(call).await?;
        let (items, more) = self
            .read(call, move |reader| {
                let after = page.cursor.unwrap_or_default();
                let later = reader.state.workflows().range((Excluded(after), Unbounded));
                let views = later.map(|(name, named)| workflow_view(name, named));
                PageBudget::new(page.limit).fill(views)
            })
            .await?;
        let next_cursor = items.last().filter(|_| more).map(|last| last.name.clone());
        Ok(Page { items, next_cursor })
    }

    /// Forgets a named workflow.
    ///
    /// # Errors
    /// When there is none with this name, it is at another version than `if_version`, or it came
    /// to no outcome by the deadline.
    pub async fn delete_workflow(
        &self,
        call: &Call,
        name: &str,
        if_version: Option<u64>,
    ) -> Result<(), CallError> {
        self.ask(call, DeleteWorkflow { name: name.to_owned(), if_version }).await
    }

    /// Creates a job.
    ///
    /// # Errors
    /// When the tenant may not, a quota is used up, or it came to no outcome by the deadline.
    pub async fn create_job(
        &self,
        call: &Call,
        new: NewJob,
    ) -> Result<Created<JobView>, CallError> {
        let command = CreateJob {
            job: JobId::from_uuid(self.seams.uuid()),
            name: new.name,
            description: new.description,
            created_by: new.created_by,
            workflow: new.workflow,
            run: new.execute.then(|| RunId::from_uuid(self.seams.uuid())),
            idempotency: call.idempotency,
        };
        let JobCreated { job, replayed, .. } = self.ask_to_start(call, command).await?;
        let resource = self.view_job(call, job).await.map_err(CallError::after_write)?;
        Ok(Created { resource, replayed })
    }

    /// One job.
    ///
    /// # Errors
    /// When there is none with this id, or no answer came by the deadline.
    pub async fn job(&self, call: &Call, id: JobId) -> Result<JobView, CallError> {
        self.catch_up(call).await?;
        self.view_job(call, id).await
    }

    /// Jobs, by creation.
    ///
    /// # Errors
    /// When the tenant's files cannot be read, or no answer came by the deadline.
    pub async fn jobs(&self, call: &Call, page: PageRequest) -> Result<Page<JobView>, CallError> {
        self.catch_up(call).await?;
        let after = page.cursor.as_deref().and_then(|at| at.parse().ok()).unwrap_or(0);
        let (items, next) = self
            .read(call, move |reader| {
                reader.state.jobs_after(reader.rows, after, page.limit, job_view)
            })
            .await??;
        Ok(Page { items, next_cursor: next.map(|seq| seq.to_string()) })
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
    async fn ask_to_start<R>(&self, call: &Call, request: R) -> Result<R::Answer, CallError>
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
    async fn ask<R: Request<TenantCommand>>(
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
        let ready = self.log.read_index(self.placed.group);
        match tokio::time::timeout_at(call.deadline, ready).await {
            Ok(ready) => Ok(ready?),
            Err(_) => Err(CallError::DeadlineExceeded),
        }
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

    async fn view_run(&self, call: &Call, id: RunId) -> Result<RunView, CallError> {
        let found = self
            .read(call, move |reader| {
                let is_active = is_active(reader);
                let run = reader.state.run(reader.rows, id);
                run.map(|run| run.map(|run| run_view(&run, is_active)))
            })
            .await??;
        Ok(found.ok_or(Refusal::RunNotFound)?)
    }

    async fn view_job(&self, call: &Call, id: JobId) -> Result<JobView, CallError> {
        let found = self.read(call, move |reader| reader.state.job(reader.rows, id)).await??;
        Ok(found.as_ref().map(job_view).ok_or(Refusal::JobNotFound)?)
    }
}

/// A command that starts something.
trait Starting {
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

/// How long showing a run may take after a long poll.
const ANSWER_AFTER_WAIT: Duration = Duration::from_secs(2);

/// Whether a line of the event log is an `audit` event. Before its type stand ids and a time.
fn is_audit(line: &str) -> bool {
    let of_type = line.split_once(r#""event_type":"#).map(|(_, rest)| rest);
    of_type.is_some_and(|rest| rest.starts_with(r#"{"type":"audit""#))
}

fn is_active(reader: &TenantReader<'_>) -> bool {
    reader.state.record().is_some_and(|record| record.status == TenantStatus::Active)
}

fn workflow_view(name: &str, named: &NamedWorkflow) -> WorkflowView {
    WorkflowView {
        name: name.to_owned(),
        version: named.version,
        spec: named.workflow.json(),
        created_at: named.created_at,
    }
}

fn damaged_event(offset: u64) -> StoreError {
    let what = "the checksum of an event does not match".to_owned();
    StoreError::Damaged { file: "events.jsonl".to_owned(), offset, what }
}
