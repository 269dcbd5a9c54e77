//! Tables and properties of the tenant's state machine.

use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::command::{
    COMMAND_VERSION, CancelRun, CreateJob, DeleteWorkflow, Idempotency, JobCreated, PutWorkflow,
    RecordStepResult, RunStarted, SetTenant, StartRun, StepDue, StepResult, WorkflowSource,
    WorkflowWritten,
};
use crate::domain::ids::TenantId;
use crate::domain::json::Json;
use crate::domain::run::RunStatus;
use crate::domain::tenant::{Quotas, Settings};
use crate::domain::workflow::{Workflow, spec};

const TERM: u64 = 3;

/// A tenant that is driven one command at a time, as a leader would.
struct Driver {
    state: TenantState,
    rows: RowBuffer,
    events: Vec<u8>,
    at: i64,
    index: u64,
}

fn tenant() -> TenantId {
    TenantId::from_uuid(Uuid::from_u128(1))
}

fn run(n: u128) -> RunId {
    RunId::from_uuid(Uuid::from_u128(n))
}

fn attempt_of(n: u128, step: u16, number: u32) -> StepAttempt {
    StepAttempt { run: run(n), step, number }
}

fn job(n: u128) -> JobId {
    JobId::from_uuid(Uuid::from_u128(n))
}

fn record(status: TenantStatus, quotas: Quotas) -> TenantRecord {
    TenantRecord {
        name: "acme".into(),
        description: String::new(),
        status,
        quotas,
        settings: Settings {
            data_retention_days: 90,
            enable_audit_logging: true,
            metadata: Json::null(),
        },
        region: "default".into(),
        created_at: Timestamp(0),
        updated_at: Timestamp(0),
    }
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
        let envelope = Envelope {
            version: COMMAND_VERSION,
            at: Timestamp(self.at),
            term,
            cause: Some(Cause { who: "admin".into(), request_id: "r".into() }),
            rpc_id: None,
            command: Command::Tenant { tenant: tenant(), epoch: Epoch(epoch), command },
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
        self.apply(TenantCommand::StartRun(StartRun {
            run: run(n),
            work_item: "w".into(),
            workflow: WorkflowSource::Inline(workflow),
            input: Json::null(),
            idempotency: key.map(|(key, body)| Idempotency { key: [key; 16], body: [body; 16] }),
        }))
    }

    fn create_job(&mut self, n: u128, starts: Option<u128>, key: Option<(u8, u8)>) -> Outcome {
        self.apply(TenantCommand::CreateJob(CreateJob {
            job: job(n),
            name: "j".into(),
            description: None,
            created_by: None,
            workflow: diamond(1),
            run: starts.map(run),
            idempotency: key.map(|(key, body)| Idempotency { key: [key; 16], body: [body; 16] }),
        }))
    }

    fn succeed(&mut self, n: u128, step: u16, attempt: u32) -> Outcome {
        let result = StepResult::Succeeded { output: Json::from_value(&step.into()) };
        self.apply(TenantCommand::StepResult(RecordStepResult {
            attempt: attempt_of(n, step, attempt),
            result,
        }))
    }

    fn fail(&mut self, n: u128, step: u16, attempt: u32, retry_in_ms: Option<u64>) -> Outcome {
        let result = StepResult::Failed { error: "no".into(), retry_in_ms };
        self.apply(TenantCommand::StepResult(RecordStepResult {
            attempt: attempt_of(n, step, attempt),
            result,
        }))
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

mod limits;
mod long_parts;

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
    assert_eq!(driver.state.next_due(), Some(Timestamp(1_500)));
    let due = TenantCommand::StepDue(StepDue { attempt: attempt_of(1, 0, 1) });
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
    assert_eq!(driver.state.next_due(), None);
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
    assert_eq!(driver.state.next_due(), None);
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
    let cancel = TenantCommand::CancelRun(CancelRun { run: run(1), reason: None });
    assert_eq!(driver.apply(cancel), Outcome::Done);
}

#[test]
fn quotas_are_exact() {
    let quotas = Quotas {
        max_concurrent_workflows: Some(2),
        max_workflows_per_day: Some(3),
        ..Quotas::default()
    };
    let mut driver = Driver::new();
    driver.set(2, TenantStatus::Active, quotas);
    let exceeded = |quota, limit, used, retry_after_secs| {
        Outcome::Refused(Refusal::QuotaExceeded { quota, limit, used, retry_after_secs })
    };
    driver.start(1, None);
    driver.start(2, None);
    assert_eq!(driver.start(3, None), exceeded(Quota::ConcurrentWorkflows, 2, 2, None));
    driver.apply(TenantCommand::CancelRun(CancelRun { run: run(1), reason: None }));
    driver.start(3, None);
    driver.apply(TenantCommand::CancelRun(CancelRun { run: run(2), reason: None }));
    // 1 s after midnight of the first day, 86,399 s are left of it.
    assert_eq!(driver.start(4, None), exceeded(Quota::WorkflowsPerDay, 3, 3, Some(86_399)));
    driver.at += 86_400_000;
    assert_eq!(driver.state.used(Quota::WorkflowsPerDay, Timestamp(driver.at)), 0);
    assert!(matches!(driver.start(4, None), Outcome::Run(_)));
    driver.apply(TenantCommand::CancelRun(CancelRun { run: run(4), reason: None }));
    driver.start(5, None);
    assert_eq!(driver.state.used(Quota::WorkflowsPerDay, Timestamp(driver.at)), 2);

    let stored = driver.state.used(Quota::StorageBytes, Timestamp(driver.at));
    assert!(driver.state.payload_bytes > 0 && stored > driver.state.meta.events_bytes);
    let full = Quotas { max_storage_bytes: Some(stored), ..quotas };
    driver.set(3, TenantStatus::Active, Quotas { max_concurrent_workflows: None, ..full });
    let used = driver.state.used(Quota::StorageBytes, Timestamp(driver.at));
    let limit = full.max_storage_bytes.unwrap();
    assert_eq!(driver.start(6, None), exceeded(Quota::StorageBytes, limit, used, None));
    assert_eq!(driver.succeed(5, 0, 1), Outcome::Done, "accepted work goes on");
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
    driver.apply(TenantCommand::CancelRun(CancelRun { run: run(1), reason: None }));
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
fn a_job_needs_room_whether_it_is_executed_or_not() {
    let mut driver = Driver::new();
    let full = Quotas { max_storage_bytes: Some(1), ..Quotas::default() };
    driver.set(2, TenantStatus::Active, full);
    for starts in [None, Some(1)] {
        let refused = driver.create_job(1, starts, None);
        assert!(
            matches!(
                refused,
                Outcome::Refused(Refusal::QuotaExceeded { quota: Quota::StorageBytes, .. })
            ),
            "{refused:?}"
        );
    }
    // The other quotas are those of its run.
    let none = Quotas { max_concurrent_workflows: Some(0), ..Quotas::default() };
    driver.set(3, TenantStatus::Active, none);
    assert!(matches!(driver.create_job(1, None, None), Outcome::Job(JobCreated { run: None, .. })));
    assert!(matches!(
        driver.create_job(2, Some(2), None),
        Outcome::Refused(Refusal::QuotaExceeded { quota: Quota::ConcurrentWorkflows, .. })
    ));
    assert_eq!(driver.state.jobs_after(&driver.rows, 0, 10, job_view).unwrap().0.len(), 1);
}

#[test]
fn input_and_outputs_of_a_run_have_one_bound() {
    let mut driver = Driver::new();
    let long = |bytes: u64| {
        let text = "x".repeat(usize::try_from(bytes).unwrap() - 2);
        Json::from_value(&text.into())
    };
    let half = super::run::RUN_PAYLOAD_BYTES_MAX / 2;
    driver.apply(TenantCommand::StartRun(StartRun {
        run: run(1),
        work_item: "w".into(),
        workflow: WorkflowSource::Inline(diamond(1)),
        input: long(half),
        idempotency: None,
    }));
    let mut succeed = |step, output| {
        let result = StepResult::Succeeded { output };
        driver.apply(TenantCommand::StepResult(RecordStepResult {
            attempt: attempt_of(1, step, 1),
            result,
        }));
    };
    succeed(0, long(half));
    // Not a byte more.
    succeed(1, Json::from_text("1".into()));
    succeed(2, Json::from_text(String::new()));
    let ended = driver.ended(1);
    use StepStatus::{Completed, Failed, Skipped};
    assert_eq!(statuses(&ended), [Completed, Failed, Completed, Skipped]);
    assert_eq!(ended.payload_bytes, 2 * half);
}

#[test]
fn a_retry_is_not_begun_while_the_tenant_is_suspended_nor_after_a_failure() {
    let mut driver = Driver::new();
    driver.start_with(1, diamond(3), None);
    driver.fail(1, 0, 1, Some(500));
    driver.set(2, TenantStatus::Suspended, Quotas::default());
    let due = TenantCommand::StepDue(StepDue { attempt: attempt_of(1, 0, 1) });
    assert_eq!(driver.apply(due), Outcome::Done);
    assert_eq!(driver.state.runs[&run(1)].steps[0].waiting, Waiting::Resume);
    assert_eq!(driver.state.outstanding(), []);
    driver.set(3, TenantStatus::Active, Quotas::default());
    assert_eq!(driver.state.runs[&run(1)].steps[0].attempt, 2);
    driver.succeed(1, 0, 2);
    // One fails for good; the other, which may try again, does not.
    driver.fail(1, 1, 1, None);
    driver.fail(1, 2, 1, Some(500));
    assert_eq!(driver.ended(1).status, RunStatus::Failed);
    assert_eq!(driver.state.next_due(), None);
}

#[test]
fn commands_of_another_epoch_or_term_do_nothing() {
    let mut driver = Driver::new();
    driver.start(1, None);
    let cancel = TenantCommand::CancelRun(CancelRun { run: run(1), reason: None });
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
        TenantCommand::StartRun(StartRun {
            run: run(1),
            work_item: "w".into(),
            workflow: WorkflowSource::Named(name.into()),
            input: Json::null(),
            idempotency: None,
        })
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
        TenantCommand::Lock(crate::command::LockCommand::Acquire {
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
    assert_eq!(token(driver.apply_as(2, None, acquire("k"))), before + FENCING_STEP);
    assert_eq!(token(driver.apply_as(2, None, acquire("l"))), before + FENCING_STEP + 1);
    // One whose earlier epochs are not known here at all.
    let mut other = Driver::new();
    other.state = TenantState::default();
    assert_eq!(other.apply_as(3, None, set), Outcome::Done);
    assert_eq!(token(other.apply_as(3, None, acquire("k"))), 2 * FENCING_STEP + 1);
}

mod clock;
mod pages;
mod whole;

/// What a leader and clients may ask for, in any order.
#[derive(Debug, Clone)]
enum Move {
    Start(u128, Option<u8>),
    Succeed(u128, u16, u32),
    Fail(u128, u16, u32, Option<u64>),
    Waits(u128, u16, u64),
    Due(u128, u16, u32),
    Cancel(u128),
    Status(TenantStatus),
    Wait(i64),
}

fn moves() -> impl Strategy<Value = Move> {
    let run = 1_u128..6;
    let statuses = [TenantStatus::Active, TenantStatus::Active, TenantStatus::Suspended];
    prop_oneof![
        3 => (run.clone(), prop::option::of(0_u8..3)).prop_map(|(n, key)| Move::Start(n, key)),
        6 => (run.clone(), 0_u16..5, 1_u32..3).prop_map(|(n, s, a)| Move::Succeed(n, s, a)),
        2 => (run.clone(), 0_u16..5, 1_u32..3, prop::option::of(0_u64..900))
            .prop_map(|(n, s, a, r)| Move::Fail(n, s, a, r)),
        1 => (run.clone(), 0_u16..5, 0_u64..900).prop_map(|(n, s, d)| Move::Waits(n, s, d)),
        3 => (run.clone(), 0_u16..5, 1_u32..3).prop_map(|(n, s, a)| Move::Due(n, s, a)),
        1 => run.prop_map(Move::Cancel),
        1 => prop::sample::select(statuses.to_vec()).prop_map(Move::Status),
        2 => (-500_i64..2_000).prop_map(Move::Wait),
    ]
}

impl Driver {
    fn play(&mut self, step: &Move) -> Outcome {
        match step.clone() {
            Move::Start(n, key) => {
                // A run's id is used once.
                let n = u128::from(self.index) * 10 + n;
                self.start_with(n, diamond(2), key.map(|key| (key, 1)))
            }
            Move::Succeed(n, step, attempt) => match self.nth(n) {
                Some(n) => self.succeed(n, step, attempt),
                None => Outcome::Ignored,
            },
            Move::Fail(n, step, attempt, retry) => match self.nth(n) {
                Some(n) => self.fail(n, step, attempt, retry),
                None => Outcome::Ignored,
            },
            Move::Waits(n, step, ms) => match self.nth(n) {
                Some(n) => {
                    let result = StepResult::WaitsUntil { due_at: Timestamp(self.at).plus_ms(ms) };
                    self.apply(TenantCommand::StepResult(RecordStepResult {
                        attempt: attempt_of(n, step, 1),
                        result,
                    }))
                }
                None => Outcome::Ignored,
            },
            Move::Due(n, step, attempt) => match self.nth(n) {
                Some(n) => self.apply(TenantCommand::StepDue(StepDue {
                    attempt: attempt_of(n, step, attempt),
                })),
                None => Outcome::Ignored,
            },
            Move::Cancel(n) => match self.nth(n) {
                Some(n) => {
                    self.apply(TenantCommand::CancelRun(CancelRun { run: run(n), reason: None }))
                }
                None => Outcome::Ignored,
            },
            Move::Status(status) => {
                self.set(self.state.meta.version + 1, status, Quotas::default());
                Outcome::Done
            }
            Move::Wait(ms) => {
                self.at += ms;
                Outcome::Done
            }
        }
    }

    /// The n-th live run.
    fn nth(&self, n: u128) -> Option<u128> {
        let live: Vec<u128> = self.state.runs.keys().map(|id| id.uuid().as_u128()).collect();
        live.get(usize::try_from(n).unwrap() % live.len().max(1)).copied()
    }

    fn check(&self) {
        assert!(self.state.runs.len() <= 10, "the default quota");
        assert_eq!(self.state.meta.events_bytes, self.events.len() as u64);
        for live in self.state.runs.values() {
            assert!(!live.status.has_ended());
            assert!(live.steps.iter().any(|step| !step.has_ended()), "an ended run is not live");
            let under_way = live.steps.iter().any(|step| step.status == StepStatus::Running);
            assert!(under_way || !self.state.is_active(), "a live run has something to do");
            for (index, step) in (0_u16..).zip(&live.steps) {
                if let Waiting::Timer(at) | Waiting::Retry(at) = step.waiting {
                    assert!(self.state.due.contains(&(at, live.attempt(index))));
                }
            }
        }
    }
}
