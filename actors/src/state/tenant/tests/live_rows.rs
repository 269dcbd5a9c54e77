//! How much is written of runs that are live.

use super::*;
use crate::ports::Row;

fn bytes(rows: &[Row]) -> usize {
    rows.iter().map(|(_, value)| value.as_ref().map_or(0, Vec::len)).sum()
}

/// A run with a long input, which is written down.
fn long_run(driver: &mut Driver, n: u128) -> Json {
    let long = Json::from_value(&"x".repeat(1 << 20).into());
    driver.apply(TenantCommand::StartRun(StartRun {
        run: run(n),
        work_item: "w".into(),
        workflow: WorkflowSource::Inline(diamond(1)),
        input: long.clone(),
        idempotency: None,
    }));
    let rows = rows::take_dirty(&mut driver.state);
    assert!((1 << 20..5 << 18).contains(&bytes(&rows)), "its input once: {}", bytes(&rows));
    driver.rows.put(rows);
    long
}

fn succeed_with(driver: &mut Driver, step: u16, output: &Json) -> usize {
    let result = StepResult::Succeeded { output: output.clone() };
    let attempt = attempt_of(1, step, 1);
    driver.apply(TenantCommand::StepResult(RecordStepResult { attempt, result }));
    let rows = rows::take_dirty(&mut driver.state);
    let written = bytes(&rows);
    driver.rows.put(rows);
    written
}

#[test]
fn what_is_long_is_written_once_while_the_run_is_live_and_once_when_it_has_ended() {
    let mut driver = Driver::new();
    let long = long_run(&mut driver, 1);
    let written = succeed_with(&mut driver, 0, &long);
    assert!((1 << 20..5 << 18).contains(&written), "the new output alone: {written}");
    let written = succeed_with(&mut driver, 1, &Json::null());
    assert!(written < 64 << 10, "neither input nor output again: {written}");
    assert_eq!(TenantState::load(&driver.rows).unwrap().runs, driver.state.runs);

    for step in [2, 3] {
        succeed_with(&mut driver, step, &long);
    }
    let ended = driver.ended(1);
    let outputs = [0, 3].map(|step: usize| ended.steps[step].output.clone());
    assert_eq!((&ended.input, outputs), (&long, [Some(long.clone()), Some(long.clone())]));
    let left: Vec<_> = driver.rows.scan(b"A", b"[", 100, false).unwrap();
    let kinds: Vec<u8> = left.iter().map(|(key, _)| key[0]).collect();
    assert_eq!(kinds, b"E", "nothing of a live run is left");
}

#[test]
fn a_run_without_a_part_is_damaged() {
    let mut driver = Driver::new();
    let long = long_run(&mut driver, 1);
    succeed_with(&mut driver, 0, &long);
    for kind in [b'G', b'O'] {
        let found = driver.rows.scan(&[kind], &[kind + 1], 1, false).unwrap();
        let (key, value) = found.into_iter().next().unwrap();
        driver.rows.put(vec![(key.clone(), None)]);
        let error = TenantState::load(&driver.rows).unwrap_err();
        assert!(
            matches!(&error, StoreError::Damaged { what, .. } if what.contains("run 1")),
            "{error}"
        );
        driver.rows.put(vec![(key, Some(value))]);
    }
    assert!(TenantState::load(&driver.rows).is_ok());
}
