//! Lists of runs and jobs, page by page.

use super::*;

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
    let mut sizes = Vec::new();
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let show = |run: &Run| (run.seq, run_view(run, true));
        let (page, next) =
            driver.state.runs_before(&driver.rows, before, None, 10_000, show).unwrap();
        sizes.push(page.len());
        seen.extend(page.iter().map(|(seq, _)| *seq));
        before = next;
        if before.is_none() {
            break;
        }
    }
    assert!(sizes.iter().all(|size| *size <= 8) && sizes.len() >= 5, "{sizes:?}");
    assert_eq!(seen, (1..=40).rev().collect::<Vec<_>>());

    // What is not wanted is bounded as well: a page may be short, or empty, and go on.
    let (mut failed, mut before, mut pages) = (Vec::new(), None, 0);
    loop {
        let show = |run: &Run| (run.seq, run_view(run, true));
        let failed_only = Some(RunStatus::Failed);
        let (page, next) =
            driver.state.runs_before(&driver.rows, before, failed_only, 10_000, show).unwrap();
        failed.extend(page.iter().map(|(seq, _)| *seq));
        pages += 1;
        before = next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!((failed, pages), (vec![40, 30, 20, 10], 2));

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
        let (mut seen, mut before) = (Vec::new(), None);
        loop {
            let show = |run: &Run| (run.seq, run_view(run, true));
            let page = driver.state.runs_before(&driver.rows, before, None, limit, show).unwrap();
            prop_assert!(page.0.len() <= limit);
            seen.extend(page.0.iter().map(|(seq, _)| *seq));
            before = page.1;
            if before.is_none() {
                break;
            }
        }
        let all: Vec<u64> = (1..driver.state.meta.next_run_seq).rev().collect();
        prop_assert_eq!(seen, all);
    }
}
