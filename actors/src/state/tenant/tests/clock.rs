//! What a wall clock that is wrong for a while does to a tenant: nothing that lasts.

use super::*;
use crate::domain::time::Pause;
use crate::state::tables::idempotency::KEPT_MS;

const DAY: i64 = 86_400_000;
const NOON: i64 = 100 * DAY + DAY / 2;

/// A tenant in the middle of a day, which has had one command under a clock 30 days ahead.
fn after_a_jump(quotas: Quotas) -> Driver {
    let mut driver = Driver::new();
    driver.at = NOON;
    driver.set(2, TenantStatus::Active, quotas);
    driver.start(1, Some((1, 1)));
    driver.at = NOON + 30 * DAY;
    driver.start(2, None);
    driver.at = NOON + 1_000;
    driver
}

#[test]
fn a_day_that_was_ahead_costs_no_later_day() {
    let quotas = Quotas { max_workflows_per_day: Some(4), ..Quotas::default() };
    let mut driver = after_a_jump(quotas);
    assert!(matches!(driver.start(3, None), Outcome::Run(_)));
    assert_eq!(driver.state.used(Quota::WorkflowsPerDay, Timestamp(driver.at)), 3);
    driver.start(4, None);
    assert!(matches!(
        driver.start(5, None),
        Outcome::Refused(Refusal::QuotaExceeded { used: 4, retry_after_secs: Some(43_199), .. })
    ));
    driver.at += DAY;
    assert_eq!(driver.state.used(Quota::WorkflowsPerDay, Timestamp(driver.at)), 0);
    assert!(matches!(driver.start(6, None), Outcome::Run(_)));
    assert_eq!(driver.state.used(Quota::WorkflowsPerDay, Timestamp(driver.at)), 1);
}

#[test]
fn moments_and_labels_are_those_of_the_clock_that_was_set_right() {
    let mut driver = after_a_jump(Quotas::default());
    driver.start_with(3, diamond(2), None);
    assert_eq!(driver.state.runs[&run(3)].started_at, Timestamp(driver.at));
    driver.fail(3, 0, 1, Some(100));
    assert_eq!(driver.next_due(), Some(Timestamp(driver.at + 100)));
    // What began while the clock was ahead does not end before it began.
    for step in [0, 1, 2, 3] {
        driver.succeed(2, step, 1);
    }
    let ended = driver.ended(2);
    assert_eq!(ended.completed_at, Some(ended.started_at));
    assert_eq!(ended.steps[0].completed_at, ended.steps[0].started_at);
    assert_eq!(ended.steps[3].completed_at, ended.steps[3].started_at);
}

#[test]
fn what_a_late_leader_says_moves_no_label_back_and_no_moment_ahead() {
    let mut driver = Driver::new();
    driver.at = NOON;
    driver.start_with(1, diamond(2), None);
    driver.at -= 400;
    driver.fail(1, 0, 1, Some(1_000));
    assert_eq!(driver.next_due(), Some(Timestamp(NOON + 600)));
    let lines = driver.lines();
    let label = Timestamp(NOON).to_string();
    assert_eq!(lines.last().unwrap()["timestamp"].as_str(), Some(&*label));
}

#[test]
fn a_key_is_not_forgotten_because_the_clock_was_ahead() {
    let mut driver = after_a_jump(Quotas::default());
    let again = |driver: &mut Driver| driver.start(9, Some((1, 1)));
    assert_eq!(again(&mut driver), Outcome::Run(RunStarted { run: run(1), replayed: true }));
    // 24 hours of ordinary life.
    for _ in 0..47 {
        driver.at += 1_800_000;
        assert_eq!(again(&mut driver), Outcome::Run(RunStarted { run: run(1), replayed: true }));
    }
    for _ in 0..3 {
        driver.at += 1_800_000;
        driver.apply(cancel(7));
    }
    assert_eq!(again(&mut driver), Outcome::Run(RunStarted { run: run(9), replayed: false }));
}

#[test]
fn a_key_is_forgotten_after_a_pause_that_the_leader_watched() {
    let mut driver = Driver::new();
    driver.start(1, Some((1, 1)));
    let since = driver.state.last_told();
    driver.at += 7 * DAY;
    let pause = Pause { since, ms: KEPT_MS + 1 };
    driver.apply(TenantCommand::TimePassed(pause));
    assert!(matches!(
        driver.start(2, Some((1, 1))),
        Outcome::Run(RunStarted { replayed: false, .. })
    ));
}

#[test]
fn a_key_is_known_whatever_has_become_of_the_tenant() {
    let mut driver = Driver::new();
    driver.start(1, Some((1, 1)));
    driver.create_job(1, Some(2), Some((2, 1)));
    let job = Outcome::Job(JobCreated { job: job(1), run: Some(run(2)), replayed: true });
    for status in [TenantStatus::Suspended, TenantStatus::Disabled] {
        let version = driver.state.meta.version + 1;
        driver.set(version, status, Quotas::default());
        let again = driver.start(3, Some((1, 1)));
        assert_eq!(again, Outcome::Run(RunStarted { run: run(1), replayed: true }));
        assert_eq!(driver.create_job(3, Some(3), Some((2, 1))), job);
        let reused = Outcome::Refused(Refusal::IdempotencyKeyReused);
        assert_eq!(driver.start(3, Some((1, 2))), reused);
        assert_ne!(driver.start(3, Some((3, 1))), reused, "refused, as a new one");
        assert!(matches!(driver.start(3, Some((3, 1))), Outcome::Refused(_)));
    }
    let none = Quotas {
        max_concurrent_workflows: Some(0),
        max_workflows_per_day: Some(0),
        max_storage_bytes: Some(0),
        ..Quotas::default()
    };
    driver.set(9, TenantStatus::Active, none);
    assert_eq!(
        driver.start(3, Some((1, 1))),
        Outcome::Run(RunStarted { run: run(1), replayed: true })
    );
    assert_eq!(driver.create_job(3, Some(3), Some((2, 1))), job);
}

#[test]
fn a_directory_without_rows_of_time_and_days_goes_on_from_its_counters() {
    let quotas = Quotas { max_workflows_per_day: Some(3), ..Quotas::default() };
    let mut driver = Driver::new();
    driver.at = NOON + 30 * DAY;
    // As a program wrote it that took the latest time for the true one, and for the age of keys.
    driver.state.time = StateClock::load(&RowBuffer::default(), Timestamp(driver.at)).unwrap();
    driver.set(2, TenantStatus::Active, quotas);
    driver.start(1, Some((1, 1)));
    let mut rows = driver.state.take_dirty_rows();
    rows.retain(|(key, _)| key != b"d" && key != b"y");
    driver.rows.put(rows);
    driver.state = TenantState::load(&driver.rows).unwrap();
    driver.at = NOON;
    assert_eq!(
        driver.start(9, Some((1, 1))),
        Outcome::Run(RunStarted { run: run(1), replayed: true })
    );
    driver.start(2, None);
    assert_eq!(driver.state.runs[&run(2)].started_at, Timestamp(NOON));
    assert_eq!(driver.state.used(Quota::WorkflowsPerDay, Timestamp(NOON)), 2);
    assert_eq!(driver.state.used(Quota::WorkflowsPerDay, Timestamp(NOON + DAY)), 0);
}
