//! A tenant's runs.

use std::time::Duration;

use super::reach::unanswered;
use crate::command::{CancelRun, Refusal, RunStarted, StartRun, WorkflowSource};
use crate::domain::ids::RunId;
use crate::domain::json::Json;
use crate::domain::page::{Page, PageBudget, PageRequest};
use crate::domain::run::RunStatus;
use crate::domain::tenant::TenantStatus;
use crate::domain::views::RunView;
use crate::handles::TenantHandle;
#[cfg(feature = "mutants")]
use crate::mutants::{self, Mutant};
use crate::ports::StoreError;
use crate::ports::error::CallError;
use crate::services::mailbox::call;
use crate::services::tenants::{TenantMessage, TenantReader};
use crate::services::{Call, Created};
use crate::state::tenant::{checked_event, run_view};

/// How long showing a run may take after a long poll.
const ANSWER_AFTER_WAIT: Duration = Duration::from_secs(2);

/// What a new run is made of.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Its workflow.
    pub workflow: WorkflowSource,
    /// Its input.
    pub input: Json,
}

impl TenantHandle {
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
                            reader.note_damage(&error);
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
}

/// Whether a line of the event log is an `audit` event. Before its type stand ids and a time.
fn is_audit(line: &str) -> bool {
    let of_type = line.split_once(r#""event_type":"#).map(|(_, rest)| rest);
    of_type.is_some_and(|rest| rest.starts_with(r#"{"type":"audit""#))
}

fn is_active(reader: &TenantReader<'_>) -> bool {
    reader.state.record().is_some_and(|record| record.status == TenantStatus::Active)
}

fn damaged_event(offset: u64) -> StoreError {
    let what = "the checksum of an event does not match".to_owned();
    StoreError::Damaged { file: "events.jsonl".to_owned(), offset, what }
}
