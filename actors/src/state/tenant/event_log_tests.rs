//! Pages of the event log, beside what was written.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use uuid::Uuid;

use super::super::events::Fields;
use super::*;
use crate::domain::ids::{Position, RunId};
use crate::ports::{BoxFuture, Found, Row, Store, StoreStats, View};

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

/// A file that counts the bytes that are read of it.
struct Counted {
    log: Vec<u8>,
    read: Arc<AtomicUsize>,
}

impl Store for Counted {
    fn events_len(&self) -> u64 {
        self.log.len() as u64
    }
    fn read_events(&self, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        self.read.fetch_add(len, Ordering::Relaxed);
        let from = usize::try_from(offset).unwrap();
        Ok(self.log[from..from + len].to_vec())
    }
    fn position(&self) -> Option<Position> {
        unreachable!()
    }
    fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        unreachable!()
    }
    fn scan(&self, _: &[u8], _: &[u8], _: usize, _: bool) -> Result<Vec<Found>, StoreError> {
        unreachable!()
    }
    fn append_events(&mut self, _: &[u8]) -> Result<(), StoreError> {
        unreachable!()
    }
    fn make_durable(&mut self, _: Vec<Row>, _: Position) -> BoxFuture<'_, Result<(), StoreError>> {
        unreachable!()
    }
    fn view(&mut self) -> Result<Box<dyn View>, StoreError> {
        unreachable!()
    }
    fn stats(&self) -> Result<StoreStats, StoreError> {
        unreachable!()
    }
}

#[test]
fn little_is_read_of_a_long_log_to_find_an_event_and_less_to_read_on() {
    let (state, log) = written(&[20; 2_000], 0);
    let (all, read) = (log.len(), Arc::new(AtomicUsize::new(0)));
    let store = Counted { log, read: Arc::clone(&read) };
    let rows = RowBuffer::new(Some(Box::new(store)));
    let page = |place| {
        read.store(0, Ordering::Relaxed);
        let page = state.events_after(&rows, place, PageBudget::new(1)).unwrap();
        (page.end, read.load(Ordering::Relaxed))
    };
    for after in [0, 1, 1_000, 1_998] {
        let (end, found) = page(after.into());
        assert_eq!(end.after, after + 1);
        assert!(found * 20 < all, "{found} of {all} bytes are read to find event {end:?}");
        let (_, next) = page(end);
        assert!(next < 1_000, "{next} bytes are read to read on");
    }
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
