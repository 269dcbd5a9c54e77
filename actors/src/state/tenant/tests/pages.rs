//! Lists of runs and jobs, page by page.

use proptest::prelude::*;

use super::*;

/// The numbers of the runs that are shown, page by page.
fn pages_of_runs(driver: &Driver, status: Option<RunStatus>, limit: usize) -> Vec<Vec<u64>> {
    let show = |run: &Run| (run.seq, run_view(run, true));
    let (mut pages, mut before) = (Vec::new(), None);
    loop {
        let (page, next) =
            driver.state.runs_before(&driver.rows, before, status, limit, show).unwrap();
        pages.push(page.into_iter().map(|(seq, _)| seq).collect());
        before = next;
        if before.is_none() {
            return pages;
        }
    }
}

/// Pages are small, whatever the limit says, where runs and jobs are large.
#[test]
fn pages_of_large_runs_and_jobs_end_by_bytes() {
    let mut driver = Driver::new();
    driver.start(1, None);
    let large = Json::from_value(&"x".repeat(1 << 20).into());
    let live = driver.state.runs[&run(1)].clone();
    for seq in 2..=40 {
        let ended = Run {
            id: run(seq.into()),
            seq,
            status: if seq % 10 == 0 { RunStatus::Failed } else { RunStatus::Completed },
            input: large.clone(),
            // Rows of an older version are the large ones.
            is_in_parts: false,
            ..live.clone()
        };
        driver.rows.put(run_rows::ended(&ended).into());
        let job = Job {
            id: JobId::from_uuid(Uuid::from_u128(seq.into())),
            name: "n".into(),
            description: Some("d".repeat(1 << 20)),
            workflow: diamond(1),
            created_by: None,
            created_at: Timestamp(0),
            run: None,
        };
        driver.rows.put(rows::job(seq, &job).into());
    }
    let pages = pages_of_runs(&driver, None, 10_000);
    assert!(pages.len() >= 5 && pages.iter().all(|page| page.len() <= 8), "{pages:?}");
    assert_eq!(pages.concat(), (1..=40).rev().collect::<Vec<_>>());

    // What is not wanted is bounded as well: a page may be short, or empty, and go on.
    let pages = pages_of_runs(&driver, Some(RunStatus::Failed), 10_000);
    assert_eq!((pages.concat(), pages.len()), (vec![40, 30, 20, 10], 2));

    let (mut jobs, mut after) = (Vec::new(), 0);
    loop {
        let (page, next) = driver.state.jobs_after(&driver.rows, after, 10_000, job_view).unwrap();
        assert!((1..=8).contains(&page.len()), "{}", page.len());
        jobs.extend(page.into_iter().map(|job| job.id));
        let Some(next) = next else { break };
        after = next;
    }
    assert_eq!(jobs.len(), 39);
    assert!(jobs.is_sorted());
}

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
    fn play(&mut self, step: &Move) {
        match *step {
            Move::Start(n, key) => {
                // A run's id is used once.
                let n = u128::from(self.index) * 10 + n;
                self.start_with(n, diamond(2), key.map(|key| (key, 1)));
            }
            Move::Succeed(n, step, attempt) => drop(self.succeed(self.nth(n), step, attempt)),
            Move::Fail(n, step, attempt, retry) => {
                self.fail(self.nth(n), step, attempt, retry);
            }
            Move::Waits(n, step, ms) => {
                let due_at = Timestamp(self.at).plus_ms(ms);
                self.result(self.nth(n), step, 1, StepResult::WaitsUntil { due_at });
            }
            Move::Due(n, step, attempt) => drop(self.apply(due(self.nth(n), step, attempt))),
            Move::Cancel(n) => drop(self.apply(cancel(self.nth(n)))),
            Move::Status(status) => {
                self.set(self.state.meta.version + 1, status, Quotas::default());
            }
            Move::Wait(ms) => self.at += ms,
        }
    }

    /// The n-th live run, or one that never was.
    fn nth(&self, n: u128) -> u128 {
        let live: Vec<u128> = self.state.runs.keys().map(|id| id.uuid().as_u128()).collect();
        live.get(usize::try_from(n).unwrap() % live.len().max(1)).copied().unwrap_or_default()
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Pages of runs, put together, are all runs, newest first, whether live or ended.
    #[test]
    fn pages_of_runs_are_whole(
        script in prop::collection::vec(moves(), 0..80), limit in 1_usize..7,
    ) {
        let mut driver = Driver::new();
        for step in &script {
            driver.play(step);
            driver.check();
        }
        let pages = pages_of_runs(&driver, None, limit);
        prop_assert!(pages.iter().all(|page| page.len() <= limit));
        let all: Vec<u64> = (1..driver.state.meta.next_run_seq).rev().collect();
        prop_assert_eq!(pages.concat(), all);
    }
}
