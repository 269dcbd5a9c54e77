//! How much is written of a run, and what is read of it.

use super::*;

/// Far more than a row without long parts takes, and far less than one of them.
const SHORT_BYTES: usize = 64 << 10;

fn long(text: &str) -> Json {
    Json::from_value(&text.repeat(1 << 20).into())
}

/// A run with a long input, whose first step has a long output.
fn long_run() -> Driver {
    let mut driver = Driver::new();
    driver.apply(TenantCommand::StartRun(StartRun {
        run: run(1),
        work_item: "w".into(),
        workflow: WorkflowSource::Inline(diamond(1)),
        input: long("i"),
        idempotency: None,
    }));
    succeed_with(&mut driver, 0, long("0"));
    driver
}

fn succeed_with(driver: &mut Driver, step: u16, output: Json) {
    let (attempt, result) = (attempt_of(1, step, 1), StepResult::Succeeded { output });
    driver.apply(TenantCommand::StepResult(RecordStepResult { attempt, result }));
    driver.rows.put(rows::take_dirty(&mut driver.state));
}

fn bytes_of(driver: &Driver, kind: u8) -> usize {
    let rows = driver.rows.scan(&[kind], &[kind + 1], 100, false).unwrap();
    rows.iter().map(|(_, value)| value.len()).sum()
}

#[test]
fn what_is_long_is_written_once_and_read_again() {
    let mut driver = long_run();
    assert!(bytes_of(&driver, b'L') < SHORT_BYTES);
    assert_eq!(TenantState::load(&driver.rows).unwrap().runs, driver.state.runs);
    for step in [1, 2] {
        succeed_with(&mut driver, step, Json::null());
    }
    let written = driver.rows.pending_bytes();
    succeed_with(&mut driver, 3, long("3"));
    let written = driver.rows.pending_bytes() - written;
    assert!((1 << 20..(1 << 20) + SHORT_BYTES).contains(&written), "the output alone: {written}");

    assert!(bytes_of(&driver, b'L') == 0 && bytes_of(&driver, b'E') < SHORT_BYTES);
    let ended = driver.ended(1);
    let outputs = [0, 3].map(|step: usize| ended.steps[step].output.clone());
    assert_eq!((ended.input, outputs), (long("i"), [Some(long("0")), Some(long("3"))]));
    let show = |run: &Run| (run.input.as_str().len(), run_view(run, true));
    for (status, shown) in
        [(None, 1), (Some(RunStatus::Completed), 1), (Some(RunStatus::Failed), 0)]
    {
        let (page, _) = driver.state.runs_before(&driver.rows, None, status, 10, show).unwrap();
        let inputs: Vec<usize> = page.into_iter().map(|(input, _)| input).collect();
        assert_eq!(inputs, vec![(1 << 20) + 2; shown], "{status:?}");
    }
}

#[test]
fn a_run_that_lacks_a_part_is_damaged() {
    let mut driver = long_run();
    for kind in [b'G', b'O'] {
        let found = driver.rows.scan(&[kind], &[kind + 1], 1, false).unwrap();
        let (key, value) = found.into_iter().next().unwrap();
        driver.rows.put(vec![(key.clone(), None)]);
        let error = TenantState::load(&driver.rows).unwrap_err();
        assert!(error.to_string().contains("is missing, a part of a run"), "{error}");
        driver.rows.put(vec![(key, Some(value))]);
    }
    assert!(TenantState::load(&driver.rows).is_ok());
}

/// The first byte of a row tells how it is laid out.
#[test]
fn a_run_that_an_older_version_started_stays_whole() {
    let driver = long_run();
    let whole = Run { is_in_parts: false, ..driver.state.runs[&run(1)].clone() };
    let [(_, removed), (key, value)] = run_rows::ended(&whole);
    let value = value.unwrap();
    assert!(removed.is_none() && value[0] == 16 && value.len() > 2 << 20);
    let read = run_rows::RunRow::decode(&key, &value).unwrap().complete(&RowBuffer::default());
    assert_eq!(read.unwrap(), whole);
}
