//! Quotas, what a run may hold, and when an attempt is not repeated.

use super::super::run::{HELD_BYTES_MAX, RUN_PAYLOAD_BYTES_MAX};
use super::*;

/// A JSON string of so many bytes, quotes included.
fn text(bytes: u64) -> Json {
    Json::from_value(&"x".repeat(usize::try_from(bytes - 2).unwrap()).into())
}

fn start_with_input(driver: &mut Driver, n: u128, input: Json) {
    driver.apply(TenantCommand::StartRun(StartRun { input, ..start_of(n, diamond(3)) }));
}

fn give(driver: &mut Driver, n: u128, step: u16, output: Json) {
    driver.result(n, step, 1, StepResult::Succeeded { output });
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
    driver.apply(cancel(1));
    driver.start(3, None);
    driver.apply(cancel(2));
    // 1 s after midnight of the first day, 86,399 s are left of it.
    assert_eq!(driver.start(4, None), exceeded(Quota::WorkflowsPerDay, 3, 3, Some(86_399)));
    driver.at += 86_400_000;
    assert_eq!(driver.state.used(Quota::WorkflowsPerDay, Timestamp(driver.at)), 0);
    assert!(matches!(driver.start(4, None), Outcome::Run(_)));
    driver.apply(cancel(4));
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
fn input_and_outputs_of_a_run_are_bounded_together() {
    use StepStatus::{Completed, Failed, Skipped};
    const MIB: u64 = 1 << 20;
    for over in [0, 1] {
        let mut driver = Driver::new();
        start_with_input(&mut driver, 1, text(5 * MIB));
        give(&mut driver, 1, 0, text(5 * MIB));
        give(&mut driver, 1, 1, text(RUN_PAYLOAD_BYTES_MAX - 10 * MIB - 4 + over));
        give(&mut driver, 1, 2, text(4));
        if over == 0 {
            assert_eq!(driver.state.runs[&run(1)].payload_bytes, RUN_PAYLOAD_BYTES_MAX);
            give(&mut driver, 1, 3, text(2));
        }
        let ended = driver.ended(1);
        let last = if over == 0 {
            [Completed, Completed, Completed, Failed]
        } else {
            [Completed, Completed, Failed, Skipped]
        };
        assert_eq!(statuses(&ended), last);
        assert!(ended.error.as_deref().unwrap().contains("16777216 bytes"), "{:?}", ended.error);
    }
}

#[test]
fn what_live_runs_hold_together_is_bounded_by_the_storage_quota() {
    let mut driver = Driver::new();
    // Beside the workflow that each run brings along.
    let limit = 30_000 + 3 * definition(3);
    let quotas = Quotas { max_storage_bytes: Some(limit), ..Quotas::default() };
    driver.set(2, TenantStatus::Active, quotas);
    for n in 1..=3 {
        start_with_input(&mut driver, n, text(1_000));
    }
    give(&mut driver, 1, 0, text(20_000));
    give(&mut driver, 2, 0, text(7_000));
    assert_eq!(driver.state.held_bytes, limit);
    give(&mut driver, 3, 0, text(2));
    let error = driver.ended(3).error.expect("a reason");
    assert!(error.contains(&format!("larger than {limit} bytes together")), "{error}");
    assert_eq!(driver.state.held_bytes, 29_000 + 2 * definition(3));
    // What has ended is stored, and no longer held.
    driver.apply(cancel(1));
    give(&mut driver, 2, 1, text(20_000));
    assert_eq!(driver.state.runs[&run(2)].steps[1].status, StepStatus::Completed);
    driver.rows.put(driver.state.take_dirty_rows());
    let held = 28_000 + definition(3);
    assert_eq!(TenantState::load(&driver.rows).unwrap().held_bytes, held);
}

#[test]
fn a_run_or_a_workflow_for_which_memory_has_no_room_is_refused() {
    const MIB: u64 = 1 << 20;
    let mut driver = Driver::new();
    let quotas = Quotas {
        max_storage_bytes: None,
        max_concurrent_workflows: None,
        max_workflows_per_day: None,
        ..Quotas::default()
    };
    driver.set(2, TenantStatus::Active, quotas);
    let put = |driver: &mut Driver, name: &str, retry| {
        let (name, workflow) = (name.to_owned(), diamond(retry));
        driver.apply(TenantCommand::PutWorkflow(PutWorkflow { name, workflow, if_version: None }))
    };
    assert!(matches!(put(&mut driver, "w", 1), Outcome::Workflow(_)));
    let (named, run_bytes) = (definition(1), 15 * MIB + definition(3));
    for n in 1..=8 {
        start_with_input(&mut driver, n, text(15 * MIB));
    }
    assert_eq!(driver.state.held_bytes, 8 * run_bytes + named);
    let left = HELD_BYTES_MAX - driver.state.held_bytes;
    start_with_input(&mut driver, 9, text(left - definition(3)));
    assert_eq!(driver.state.held_bytes, HELD_BYTES_MAX);

    let refusal = Refusal::MemoryLimit { limit: HELD_BYTES_MAX, used: HELD_BYTES_MAX };
    assert_eq!(driver.start(10, None), Outcome::Refused(refusal.clone()));
    assert_eq!(driver.state.quota_refusal_now(&Starts::Run, None), Some(refusal.clone()));
    assert_eq!(put(&mut driver, "v", 1), Outcome::Refused(refusal));
    assert!(matches!(put(&mut driver, "w", 2), Outcome::Workflow(_)), "it takes no more room");
    driver.rows.put(driver.state.take_dirty_rows());
    assert_eq!(TenantState::load(&driver.rows).unwrap().held_bytes, HELD_BYTES_MAX);

    driver.apply(cancel(1));
    assert!(matches!(driver.start(10, None), Outcome::Run(_)));
    let gone = DeleteWorkflow { name: "w".into(), if_version: None };
    let before = driver.state.held_bytes;
    assert_eq!(driver.apply(TenantCommand::DeleteWorkflow(gone)), Outcome::Done);
    assert_eq!(driver.state.held_bytes, before - definition(2));
}

#[test]
fn a_run_that_is_failing_repeats_no_attempt() {
    use StepStatus::{Completed, Failed, Skipped};
    let mut driver = Driver::new();
    driver.start_with(1, diamond(3), None);
    driver.succeed(1, 0, 1);
    driver.fail(1, 1, 1, None);
    driver.fail(1, 2, 1, Some(500));
    assert_eq!(statuses(&driver.ended(1)), [Completed, Failed, Failed, Skipped]);
    assert_eq!(driver.next_due(), None);
    let failed = |line: &&serde_json::Value| line["event_type"]["type"] == "step_failed";
    let lines = driver.lines();
    assert!(lines.iter().filter(failed).all(|line| line["event_type"]["will_retry"] == false));
}

#[test]
fn a_suspended_tenant_repeats_no_attempt_until_it_is_active() {
    let mut driver = Driver::new();
    driver.start_with(1, diamond(3), None);
    driver.fail(1, 0, 1, Some(500));
    driver.set(2, TenantStatus::Suspended, Quotas::default());
    driver.at += 500;
    let due = due(1, 0, 1);
    assert_eq!(driver.apply(due), Outcome::Done);
    let step = &driver.state.runs[&run(1)].steps[0];
    assert_eq!((step.attempt, step.waiting), (1, Waiting::Resume));
    assert!(driver.state.outstanding().is_empty());
    driver.set(3, TenantStatus::Active, Quotas::default());
    let step = &driver.state.runs[&run(1)].steps[0];
    assert_eq!((step.attempt, step.waiting), (2, Waiting::Nothing));
    assert_eq!(driver.state.outstanding().len(), 1);
}

#[test]
fn a_wait_is_told_once_and_only_while_it_lasts() {
    let mut driver = Driver::new();
    driver.start_with(1, diamond(2), None);
    driver.fail(1, 0, 1, Some(500));
    let wait = (Timestamp(driver.at + 500), attempt_of(1, 0, 1));
    assert_eq!(driver.state.take_new_waits(), [wait]);
    assert_eq!(driver.state.take_new_waits(), []);
    assert_eq!(driver.state.waits().collect::<Vec<_>>(), [wait], "it lasts");
    driver.start_with(2, diamond(2), None);
    driver.fail(2, 0, 1, Some(500));
    driver.apply(cancel(2));
    assert_eq!(driver.state.take_new_waits(), []);
    assert_eq!(driver.state.waits().count(), 1);
    assert_eq!(driver.state.epoch(), Some(Epoch(1)));
    driver.apply(TenantCommand::Set(SetTenant { version: 2, record: None }));
    assert_eq!((driver.state.epoch(), driver.state.waits().count()), (None, 0));
}

/// Bytes of the workflow as clients read it.
fn definition(retry: u32) -> u64 {
    diamond(retry).json().as_str().len() as u64
}

/// A program of before did not write the count: its rows are counted, more of each kind than are read
/// at once.
#[test]
fn a_directory_without_a_count_of_bytes_is_counted_anew() {
    let mut driver = Driver::new();
    for n in 1..=9 {
        start_with_input(&mut driver, n, text(100 + u64::try_from(n).unwrap()));
    }
    for n in 1..=7 {
        driver.apply(cancel(n));
    }
    for n in 11..=17 {
        driver.create_job(n, None, None);
    }
    for (name, retry) in [("w", 1), ("w", 100), ("gone", 1)] {
        let (name, workflow) = (name.to_owned(), diamond(retry));
        driver.apply(TenantCommand::PutWorkflow(PutWorkflow { name, workflow, if_version: None }));
    }
    let gone =
        TenantCommand::DeleteWorkflow(DeleteWorkflow { name: "gone".into(), if_version: None });
    assert_eq!(driver.apply(gone), Outcome::Done);
    let counted = driver.state.payload_bytes();
    let inputs: u64 = (101..=109).sum();
    assert_eq!(counted, inputs + 7 * definition(1) + definition(100));
    let without_count = driver.state.take_dirty_rows().into_iter().filter(|(key, _)| key != b"p");
    driver.rows.put(without_count.collect());
    let mut state = TenantState::load(&driver.rows).unwrap();
    assert_eq!(state.payload_bytes(), counted);
    assert!(
        state.take_dirty_rows().iter().any(|(key, _)| key == b"p"),
        "it is written from now on"
    );
}

#[test]
fn what_is_refused_before_it_is_in_the_log_would_be_refused_there() {
    let quotas = |runs, bytes| Quotas {
        max_concurrent_workflows: runs,
        max_storage_bytes: bytes,
        max_workflows_per_day: Some(1),
        ..Quotas::default()
    };
    let named = |name: &str| Starts::NamedRun(name.to_owned());
    let mut driver = Driver::new();
    driver.set(2, TenantStatus::Active, quotas(Some(1), None));
    assert_eq!(driver.state.quota_refusal_now(&Starts::Run, None), None);
    driver.start(1, Some((1, 1)));
    let early = driver.state.quota_refusal_now(&Starts::Run, None).expect("a refusal");
    assert_eq!(driver.start(2, None), Outcome::Refused(early));
    // What `apply` looks at first comes first here, too.
    let known = Idempotency { key: [1; 16], body: [1; 16] };
    assert_eq!(driver.state.quota_refusal_now(&Starts::Run, Some(&known)), None);
    assert_eq!(driver.state.quota_refusal_now(&named("none"), None), None);
    assert_eq!(driver.state.quota_refusal_now(&Starts::Definition, None), None, "it does not run");

    // The quota of the day is left to `apply`: the state would not notice that a new day has begun.
    driver.apply(cancel(1));
    assert!(matches!(driver.start(2, None), Outcome::Refused(_)));
    assert_eq!(driver.state.quota_refusal_now(&Starts::Run, None), None);

    driver.set(3, TenantStatus::Active, quotas(None, Some(1)));
    let early = driver.state.quota_refusal_now(&Starts::Definition, None).expect("a refusal");
    assert_eq!(driver.create_job(1, None, None), Outcome::Refused(early));
    driver.set(4, TenantStatus::Suspended, quotas(None, Some(1)));
    assert_eq!(driver.state.quota_refusal_now(&Starts::Definition, None), None);
}

#[test]
fn metadata_of_locks_needs_room_and_takes_it() {
    let quotas = |bytes| Quotas { max_storage_bytes: bytes, ..Quotas::default() };
    let acquire = |key: &str, metadata: Json| {
        TenantCommand::Lock(LockCommand::Acquire {
            key: key.into(),
            holder: "h".into(),
            ttl_ms: 1_000,
            metadata,
        })
    };
    let long = || Json::from_value(&"m".repeat(1_000).into());
    let mut driver = Driver::new();
    driver.set(2, TenantStatus::Active, quotas(None));
    let before = driver.state.used(Quota::StorageBytes, Timestamp(driver.at));
    assert!(matches!(driver.apply(acquire("a", long())), Outcome::Locked(_)));
    let used = driver.state.used(Quota::StorageBytes, Timestamp(driver.at));
    assert!(used >= before + 1_000, "{before} before, {used} after");

    driver.set(3, TenantStatus::Active, quotas(Some(before + 1_000)));
    let refused = driver.apply(acquire("b", long()));
    let is_quota = |outcome: &Outcome| {
        let Outcome::Refused(Refusal::QuotaExceeded { quota, .. }) = outcome else { return false };
        *quota == Quota::StorageBytes
    };
    assert!(is_quota(&refused), "{refused:?}");
    assert!(is_quota(&driver.start(1, None)), "it takes the room of runs");
    // What needs no more room than it has goes on: locks without metadata, and renewals.
    assert!(matches!(driver.apply(acquire("c", Json::null())), Outcome::Locked(_)));
    assert!(matches!(driver.apply(acquire("a", long())), Outcome::Locked(_)));
    let release = LockCommand::Release { key: "a".into(), holder: "h".into(), token: None };
    assert_eq!(driver.apply(TenantCommand::Lock(release)), Outcome::Released(true));
    assert!(
        matches!(driver.apply(acquire("b", long())), Outcome::Locked(_)),
        "there is room again"
    );
}
