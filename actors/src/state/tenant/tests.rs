//! Tables and properties of the tenant's state machine.

mod clock;
mod limits;
mod long_parts;
mod pages;
mod whole;

use std::sync::Arc;

use uuid::Uuid;

use super::*;
use crate::command::{
    CancelRun, Cause, Command, CreateJob, DeleteWorkflow, Idempotency, JobCreated, LockCommand,
    PutWorkflow, RecordStepResult, Refusal, RunStarted, SetTenant, StartRun, StepDue, StepResult,
    TenantCommand, WorkflowSource, WorkflowWritten,
};
use crate::domain::ids::TenantId;
use crate::domain::json::Json;
use crate::domain::lock::{FENCING_STEP, FencingToken};
use crate::domain::run::RunStatus;
use crate::domain::tenant::{Quotas, TenantStatus};
use crate::domain::workflow::{Workflow, spec};
use crate::testing::{envelope, tenant, tenant_record};

const TERM: u64 = 3;

/// A tenant that is driven one command at a time, as a leader would.
struct Driver {
    state: TenantState,
    rows: RowBuffer,
    events: Vec<u8>,
    at: i64,
    index: u64,
}

/// The tenant of all tests here.
const TENANT: TenantId = tenant(1);

fn run(n: u128) -> RunId {
    RunId::from_uuid(Uuid::from_u128(n))
}

fn attempt_of(n: u128, step: u16, number: u32) -> StepAttempt {
    StepAttempt { run: run(n), step, number }
}

fn cancel(n: u128) -> TenantCommand {
    TenantCommand::CancelRun(CancelRun { run: run(n), reason: None })
}

fn start_of(n: u128, workflow: Arc<Workflow>) -> StartRun {
    StartRun {
        run: run(n),
        work_item: "w".into(),
        workflow: WorkflowSource::Inline(workflow),
        input: Json::null(),
        idempotency: None,
    }
}

fn due(n: u128, step: u16, number: u32) -> TenantCommand {
    TenantCommand::StepDue(StepDue { attempt: attempt_of(n, step, number) })
}

/// A key with the hash of the body that it came with.
fn keyed(key: Option<(u8, u8)>) -> Option<Idempotency> {
    key.map(|(key, body)| Idempotency { key: [key; 16], body: [body; 16] })
}

fn job(n: u128) -> JobId {
    JobId::from_uuid(Uuid::from_u128(n))
}

fn record(status: TenantStatus, quotas: Quotas) -> TenantRecord {
    TenantRecord { status, quotas, ..tenant_record() }
}

/// `a` then `b` and `c` beside each other, then `d`.
fn diamond(retry: u32) -> Arc<Workflow> {
    let step = |id: &str, needs: &[&str]| {
        serde_json::json!({
            "id": id, "depends_on": needs, "action": {"type": "set", "output": id},
            "retry_policy": {"max_attempts": retry, "backoff_secs": 1}
        })
    };
    let steps = [step("a", &[]), step("b", &["a"]), step("c", &["a"]), step("d", &["b", "c"])];
    let value = serde_json::json!({ "steps": steps });
    Arc::new(spec::parse(serde_json::from_value(value).unwrap()).unwrap())
}

impl Driver {
    fn new() -> Self {
        let mut driver = Self {
            state: TenantState::default(),
            rows: RowBuffer::default(),
            events: Vec::new(),
            at: 1_000,
            index: 0,
        };
        driver.set(1, TenantStatus::Active, Quotas::default());
        driver
    }

    fn apply_as(&mut self, epoch: u64, term: Option<u64>, command: TenantCommand) -> Outcome {
        self.index += 1;
        let command = Command::Tenant { tenant: TENANT, epoch: Epoch(epoch), command };
        let envelope = Envelope {
            at: Timestamp(self.at),
            term,
            cause: Some(Cause { who: "admin".into(), request_id: "r".into() }),
            ..envelope(command)
        };
        let position = Position { term: TERM, index: self.index };
        let (outcome, _) = self.state.apply(position, &envelope);
        self.events.extend(self.state.take_events());
        self.rows.put(self.state.take_final_rows());
        outcome
    }

    fn apply(&mut self, command: TenantCommand) -> Outcome {
        self.apply_as(1, None, command)
    }

    fn set(&mut self, version: u64, status: TenantStatus, quotas: Quotas) {
        let record = Some(record(status, quotas));
        self.apply(TenantCommand::Set(SetTenant { version, record }));
    }

    fn start(&mut self, n: u128, key: Option<(u8, u8)>) -> Outcome {
        self.start_with(n, diamond(1), key)
    }

    fn start_with(&mut self, n: u128, workflow: Arc<Workflow>, key: Option<(u8, u8)>) -> Outcome {
        let start = StartRun { idempotency: keyed(key), ..start_of(n, workflow) };
        self.apply(TenantCommand::StartRun(start))
    }

    fn create_job(&mut self, n: u128, starts: Option<u128>, key: Option<(u8, u8)>) -> Outcome {
        self.apply(TenantCommand::CreateJob(CreateJob {
            job: job(n),
            name: "j".into(),
            description: None,
            created_by: None,
            workflow: diamond(1),
            run: starts.map(run),
            idempotency: keyed(key),
        }))
    }

    fn result(&mut self, n: u128, step: u16, number: u32, result: StepResult) -> Outcome {
        let attempt = attempt_of(n, step, number);
        self.apply(TenantCommand::StepResult(RecordStepResult { attempt, result }))
    }

    fn succeed(&mut self, n: u128, step: u16, number: u32) -> Outcome {
        let output = Json::from_value(&step.into());
        self.result(n, step, number, StepResult::Succeeded { output })
    }

    fn fail(&mut self, n: u128, step: u16, number: u32, retry_in_ms: Option<u64>) -> Outcome {
        self.result(n, step, number, StepResult::Failed { error: "no".into(), retry_in_ms })
    }

    fn next_due(&self) -> Option<Timestamp> {
        self.state.waits().next().map(|(at, _)| at)
    }

    fn ended(&self, n: u128) -> Run {
        assert!(!self.state.runs.contains_key(&run(n)), "still live");
        self.state.run(&self.rows, run(n)).unwrap().unwrap()
    }

    fn lines(&self) -> Vec<serde_json::Value> {
        let text = std::str::from_utf8(&self.events).unwrap();
        assert!(text.ends_with('\n'));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// What it changed would be compared with what it changed elsewhere.
#[test]
fn a_comparison_changes_nothing_not_even_the_clock() {
    let mut driver = Driver::new();
    driver.start(1, None);
    let (rows, events) = (rows::take_dirty(&mut driver.state), driver.events.len());
    assert!(!rows.is_empty());
    driver.at += 90_000_000;
    let compare = || TenantCommand::Compare;
    assert_eq!(driver.apply_as(1, Some(TERM), compare()), Outcome::Done);
    // An earlier leader's, and one of another life of the tenant, are not compared by.
    assert_eq!(driver.apply_as(1, Some(TERM - 1), compare()), Outcome::Ignored);
    assert_eq!(driver.apply_as(2, None, compare()), Outcome::Refused(Refusal::StaleEpoch));
    assert_eq!(rows::take_dirty(&mut driver.state), Vec::new());
    assert_eq!(driver.events.len(), events);
    assert!(driver.state.last_told().ms_since(Timestamp(1_000)) == 0);
}

fn statuses(run: &Run) -> Vec<StepStatus> {
    run.steps.iter().map(|step| step.status).collect()
}

#[test]
fn a_run_goes_through_its_graph_and_tells_it_in_events() {
    use StepStatus::{Completed, Pending, Running};
    let mut driver = Driver::new();
    driver.start(1, None);
    assert_eq!(statuses(&driver.state.runs[&run(1)]), [Running, Pending, Pending, Pending]);
    driver.succeed(1, 0, 1);
    assert_eq!(statuses(&driver.state.runs[&run(1)]), [Completed, Running, Running, Pending]);
    driver.succeed(1, 2, 1);
    driver.succeed(1, 1, 1);
    assert_eq!(driver.succeed(1, 1, 1), Outcome::Ignored, "a second result is not recorded");
    driver.at += 2_500;
    driver.succeed(1, 3, 1);
    let ended = driver.ended(1);
    assert_eq!(ended.status, RunStatus::Completed);
    assert_eq!(run_view(&ended, true).output.unwrap().as_str(), r#"{"d":3}"#);

    let lines = driver.lines();
    for (seq, line) in (1_u64..).zip(&lines) {
        assert_eq!(
            (line["seq"].as_u64(), line["id"].as_str()),
            (Some(seq), Some(&*seq.to_string()))
        );
    }
    let types: Vec<&str> =
        lines.iter().map(|line| line["event_type"]["type"].as_str().unwrap()).collect();
    assert_eq!(types[..3], ["tenant_created", "run_started", "audit"]);
    assert_eq!(types.iter().filter(|name| **name == "step_completed").count(), 4);
    let last = &lines.last().unwrap()["event_type"];
    assert_eq!(*last, serde_json::json!({"type": "run_completed", "duration_secs": 2}));
    // The run knows where its events are.
    let spans = ended.events.iter().map(|span| {
        let from = usize::try_from(span.offset).unwrap();
        &driver.events[from..from + span.bytes()]
    });
    let own: Vec<u8> = spans.flatten().copied().collect();
    assert_eq!(own.split(|byte| *byte == b'\n').count(), lines.len());
}

#[test]
fn a_failed_attempt_is_repeated_when_it_is_due() {
    let mut driver = Driver::new();
    driver.start_with(1, diamond(2), None);
    driver.fail(1, 0, 1, Some(500));
    assert_eq!(driver.next_due(), Some(Timestamp(1_500)));
    let due = due(1, 0, 1);
    assert_eq!(
        driver.apply_as(1, Some(TERM - 1), due.clone()),
        Outcome::Ignored,
        "a leader before"
    );
    assert_eq!(driver.apply(due.clone()), Outcome::Done);
    assert_eq!(driver.apply(due), Outcome::Ignored, "the attempt is over");
    assert_eq!(driver.state.outstanding().len(), 1);
    assert_eq!(driver.succeed(1, 0, 1), Outcome::Ignored, "late news of the first attempt");
    // The last attempt fails for good, whatever the leader thought of another one.
    driver.fail(1, 0, 2, Some(500));
    let ended = driver.ended(1);
    assert_eq!(ended.status, RunStatus::Failed);
    use StepStatus::{Failed, Skipped};
    assert_eq!(statuses(&ended), [Failed, Skipped, Skipped, Skipped]);
    assert_eq!(driver.next_due(), None);
}

#[test]
fn steps_under_way_finish_beside_a_failure_and_waiting_ones_do_not() {
    use StepStatus::{Completed, Failed, Skipped};
    let mut driver = Driver::new();
    driver.start_with(1, diamond(2), None);
    driver.succeed(1, 0, 1);
    driver.fail(1, 1, 1, None);
    assert!(driver.state.runs.contains_key(&run(1)), "step c is under way");
    driver.succeed(1, 2, 1);
    assert_eq!(statuses(&driver.ended(1)), [Completed, Failed, Completed, Skipped]);

    driver.start_with(2, diamond(2), None);
    driver.succeed(2, 0, 1);
    driver.fail(2, 1, 1, Some(5_000));
    driver.fail(2, 2, 1, None);
    assert_eq!(statuses(&driver.ended(2)), [Completed, Skipped, Failed, Skipped]);
    assert_eq!(driver.next_due(), None);
}

#[test]
fn a_cancelled_run_ends_at_once() {
    let mut driver = Driver::new();
    driver.start(1, None);
    let cancel = TenantCommand::CancelRun(CancelRun { run: run(1), reason: Some("enough".into()) });
    assert_eq!(driver.apply(cancel.clone()), Outcome::Done);
    let ended = driver.ended(1);
    assert_eq!((ended.status, ended.error.as_deref()), (RunStatus::Cancelled, Some("enough")));
    assert!(ended.steps.iter().all(|step| step.status == StepStatus::Skipped));
    assert_eq!(driver.apply(cancel), Outcome::Refused(Refusal::RunNotFound));
}

#[test]
fn a_suspended_tenant_pauses_between_steps() {
    let mut driver = Driver::new();
    driver.start(1, None);
    driver.set(2, TenantStatus::Suspended, Quotas::default());
    assert_eq!(driver.start(2, None), Outcome::Refused(Refusal::TenantSuspended));
    driver.succeed(1, 0, 1);
    let paused = run_view(&driver.state.runs[&run(1)], false);
    let waiting: Vec<_> = paused.steps.iter().map(|step| step.waiting_for).collect();
    assert_eq!(waiting, [None, Some("resume"), Some("resume"), None]);
    driver.set(3, TenantStatus::Active, Quotas::default());
    assert_eq!(driver.state.outstanding().len(), 2);
    // What winds work down is allowed while suspended.
    driver.set(4, TenantStatus::Disabled, Quotas::default());
    assert_eq!(driver.start(2, None), Outcome::Refused(Refusal::TenantDisabled));
    let cancel = cancel(1);
    assert_eq!(driver.apply(cancel), Outcome::Done);
}

#[test]
fn a_key_starts_one_run() {
    let mut driver = Driver::new();
    driver.set(
        2,
        TenantStatus::Active,
        Quotas { max_concurrent_workflows: Some(1), ..Quotas::default() },
    );
    assert!(matches!(
        driver.start(1, Some((1, 1))),
        Outcome::Run(RunStarted { replayed: false, .. })
    ));
    let again = driver.start(2, Some((1, 1)));
    assert_eq!(
        again,
        Outcome::Run(RunStarted { run: run(1), replayed: true }),
        "counts against no quota"
    );
    assert_eq!(driver.start(3, Some((1, 2))), Outcome::Refused(Refusal::IdempotencyKeyReused));
    // A refused call is not remembered.
    assert!(matches!(driver.start(4, Some((2, 2))), Outcome::Refused(_)));
    driver.apply(cancel(1));
    assert_eq!(
        driver.start(4, Some((2, 2))),
        Outcome::Run(RunStarted { run: run(4), replayed: false })
    );
}

#[test]
fn a_key_makes_one_job() {
    let mut driver = Driver::new();
    let first = driver.create_job(1, Some(1), Some((1, 1)));
    assert_eq!(first, Outcome::Job(JobCreated { job: job(1), run: Some(run(1)), replayed: false }));
    let again = driver.create_job(2, Some(2), Some((1, 1)));
    assert_eq!(again, Outcome::Job(JobCreated { job: job(1), run: Some(run(1)), replayed: true }));
    let reused = driver.create_job(3, None, Some((1, 2)));
    assert_eq!(reused, Outcome::Refused(Refusal::IdempotencyKeyReused));
    assert_eq!(driver.state.jobs_after(&driver.rows, 0, 10, job_view).unwrap().0.len(), 1);
    assert_eq!(driver.state.runs.len(), 1);
}

#[test]
fn commands_of_another_epoch_or_term_do_nothing() {
    let mut driver = Driver::new();
    driver.start(1, None);
    let cancel = cancel(1);
    assert_eq!(driver.apply_as(2, None, cancel.clone()), Outcome::Refused(Refusal::StaleEpoch));
    assert_eq!(driver.apply_as(1, Some(TERM - 1), cancel.clone()), Outcome::Ignored);
    assert_eq!(driver.apply_as(1, Some(TERM), cancel.clone()), Outcome::Done);
    // Never created by its first command; and gone with its deletion.
    let mut unknown = Driver { state: TenantState::default(), ..Driver::new() };
    assert_eq!(unknown.apply(cancel.clone()), Outcome::Refused(Refusal::StaleEpoch));
    driver.apply(TenantCommand::Set(SetTenant { version: 9, record: None }));
    assert!(!driver.state.needs_files());
    assert_eq!(driver.apply(cancel), Outcome::Refused(Refusal::StaleEpoch));
    driver.set(8, TenantStatus::Active, Quotas::default());
    assert!(driver.state.record().is_none(), "an older version does not bring it back");
}

#[test]
fn workflows_have_versions_that_runs_keep() {
    let mut driver = Driver::new();
    let put = |if_version| {
        TenantCommand::PutWorkflow(PutWorkflow {
            name: "w".into(),
            workflow: diamond(1),
            if_version,
        })
    };
    assert!(matches!(
        driver.apply(put(None)),
        Outcome::Workflow(WorkflowWritten { version: 1, .. })
    ));
    assert!(matches!(
        driver.apply(put(Some(1))),
        Outcome::Workflow(WorkflowWritten { version: 2, .. })
    ));
    assert_eq!(
        driver.apply(put(Some(1))),
        Outcome::Refused(Refusal::PreconditionFailed { current: 2 })
    );
    let named = |name: &str| {
        let workflow = WorkflowSource::Named(name.into());
        TenantCommand::StartRun(StartRun { workflow, ..start_of(1, diamond(1)) })
    };
    let unknown = Refusal::UnknownWorkflow { name: "nope".into() };
    assert_eq!(driver.apply(named("nope")), Outcome::Refused(unknown));
    driver.apply(named("w"));
    driver.apply(TenantCommand::DeleteWorkflow(DeleteWorkflow {
        name: "w".into(),
        if_version: None,
    }));
    assert_eq!(driver.state.runs[&run(1)].workflow.steps.len(), 4);
}

#[test]
fn in_a_new_epoch_locks_have_tokens_that_were_never_given() {
    let mut driver = Driver::new();
    let acquire = |key: &str| {
        TenantCommand::Lock(LockCommand::Acquire {
            key: key.into(),
            holder: "a".into(),
            ttl_ms: 1,
            metadata: Json::null(),
        })
    };
    let token = |outcome| match outcome {
        Outcome::Locked(lock) => lock.token,
        other => panic!("{other:?}"),
    };
    let before = token(driver.apply(acquire("k")));
    let record = Some(record(TenantStatus::Active, Quotas::default()));
    let set = TenantCommand::Set(SetTenant { version: 1, record });
    assert_eq!(driver.apply_as(2, None, set.clone()), Outcome::Done);
    let stale = Outcome::Refused(Refusal::StaleEpoch);
    assert_eq!(driver.apply_as(1, None, acquire("k")), stale);
    assert_eq!(token(driver.apply_as(2, None, acquire("k"))), before.raised(FENCING_STEP));
    assert_eq!(token(driver.apply_as(2, None, acquire("l"))), before.raised(FENCING_STEP + 1));
    // One whose earlier epochs are not known here at all.
    let mut other = Driver::new();
    other.state = TenantState::default();
    assert_eq!(other.apply_as(3, None, set), Outcome::Done);
    assert_eq!(token(other.apply_as(3, None, acquire("k"))), FencingToken(2 * FENCING_STEP + 1));
}
