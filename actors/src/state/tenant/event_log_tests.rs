//! Pages of the event log, beside what was written.

use proptest::prelude::*;
use uuid::Uuid;

use super::super::events::Fields;
use super::*;
use crate::domain::ids::RunId;

/// A tenant whose events have texts of these lengths, and the log.
fn written(lengths: &[usize], sealed_from: usize) -> (TenantState, Vec<u8>) {
    let mut state = TenantState::default();
    state.meta.next_event_seq = 1;
    for (at, len) in lengths.iter().enumerate() {
        state.checks_events = at >= sealed_from;
        let fields = Fields::new("x").text("text", &"y".repeat(*len));
        state.run_event(RunId::from_uuid(Uuid::nil()), fields);
    }
    let log = std::mem::take(&mut state.events);
    (state, log)
}

fn rows(log: &[u8]) -> RowBuffer {
    let mut rows = RowBuffer::default();
    rows.put_events(log);
    rows
}

fn seqs(page: &EventPage) -> Vec<u64> {
    page.events.iter().map(|event| seq_of_line(event.as_str().as_bytes()).unwrap()).collect()
}

#[test]
fn pages_join_to_the_whole_log() {
    let (state, log) = written(&[5; 100], 0);
    let rows = rows(&log);
    let page = |after: u64, limit| {
        state.events_after(&rows, after.into(), PageBudget::new(limit)).unwrap()
    };
    let (first, second) = (page(0, 60), page(60, 60));
    assert_eq!((seqs(&first), first.end.after), ((1..=60).collect(), 60));
    assert_eq!((seqs(&second), second.end.after), ((61..=100).collect(), 100));
    for beyond in [100, 101, u64::MAX] {
        assert_eq!(page(beyond, 60), EventPage { events: Vec::new(), end: beyond.into() });
    }
    let few = PageBudget::new(60).within(400);
    assert_eq!(seqs(&state.events_after(&rows, 3.into(), few).unwrap()), [4, 5]);
    let tiny = PageBudget::new(60).within(1);
    assert_eq!(seqs(&state.events_after(&rows, 3.into(), tiny).unwrap()), [4], "one at least");
}

#[test]
fn a_log_that_is_shorter_than_the_state_says_is_damaged() {
    let (mut state, log) = written(&[5; 3], 0);
    state.meta.next_event_seq += 1;
    let error = state.events_after(&rows(&log), 0.into(), PageBudget::new(9)).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_event_is_found(
        lengths in prop::collection::vec(prop_oneof![0_usize..40, 0_usize..700], 0..60),
        sealed_from in 0_usize..20,
        limit in 1_usize..8,
        hint in 0_u64..9_000,
    ) {
        let (state, log) = written(&lengths, sealed_from);
        let (rows, count) = (rows(&log), lengths.len() as u64);
        for after in 0..count + 2 {
            let page = state.events_after(&rows, after.into(), PageBudget::new(limit)).unwrap();
            let last = (after + limit as u64).min(count);
            prop_assert_eq!(seqs(&page), (after + 1..=last).collect::<Vec<_>>());
            prop_assert_eq!(page.end.after, last.max(after));
            // The next page is the same with the place where this one ended, whatever that says, and without.
            let next = |place| state.events_after(&rows, place, PageBudget::new(limit)).unwrap();
            let plain = next(page.end.after.into());
            prop_assert_eq!(&next(page.end).events, &plain.events);
            let wrong = EventPlace { offset: Some(hint), ..page.end };
            prop_assert_eq!(next(wrong).events, plain.events);
        }
    }

    #[test]
    fn what_rotted_is_never_given(
        lengths in prop::collection::vec(0_usize..90, 1..20),
        at in any::<prop::sample::Index>(),
        bit in 0..8,
        after in 0_u64..20,
    ) {
        let (state, mut log) = written(&lengths, 0);
        let before = state.events_after(&rows(&log), after.into(), PageBudget::new(9)).unwrap();
        let at = at.index(log.len());
        log[at] ^= 1_u8 << bit;
        if let Ok(page) = state.events_after(&rows(&log), after.into(), PageBudget::new(9)) {
            prop_assert_eq!(page.events, before.events);
        }
    }
}
