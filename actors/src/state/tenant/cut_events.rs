//! Drops the end of the event log, where it is damaged and nobody else has it. For a repair of files; no
//! command comes to this.
//!
//! Invariant: afterwards no run speaks of an event that is not there, and the next event is written where
//! the log ends, with the number behind the last one that is left.

use super::rows::for_each;
use super::run_rows::{self, RunRow};
use super::{EventSpan, Run, TenantState};
use crate::ports::{Row, StoreError};
use crate::state::RowBuffer;

impl TenantState {
    /// Counts the events that were written.
    pub const fn events_written(&self) -> u64 {
        self.meta.next_event_seq.saturating_sub(1)
    }

    /// Lets go of all events but the first `kept`, which take `bytes` of the event log. Returns the rows of
    /// ended runs that change by it.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn forget_events(
        &mut self,
        rows: &RowBuffer,
        kept: u64,
        bytes: u64,
    ) -> Result<Vec<Row>, StoreError> {
        let mut changed = Vec::new();
        for_each(rows, run_rows::ENDED, |key, value| {
            let mut row = RunRow::decode(key, value)?;
            if cut_events(&mut row.run, bytes) {
                changed.push((key.to_vec(), Some(row.encode())));
            }
            Ok(())
        })?;
        for (id, run) in &mut self.runs {
            if cut_events(run, bytes) {
                self.dirty.runs.insert(*id);
            }
        }
        self.meta.next_event_seq = kept + 1;
        self.meta.events_bytes = bytes;
        self.dirty.meta = true;
        Ok(changed)
    }
}

/// Tells whether the run had events that are dropped.
fn cut_events(run: &mut Run, bytes: u64) -> bool {
    let before = run.events.len();
    run.events.retain(|span| ends_by(*span, bytes));
    run.events.len() < before
}

const fn ends_by(span: EventSpan, bytes: u64) -> bool {
    span.offset + span.bytes() as u64 <= bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_places_go_on_where_the_log_was_cut() {
        let mut state = TenantState::default();
        (state.meta.next_event_seq, state.meta.events_bytes) = (8, 700);
        assert_eq!(state.events_written(), 7);
        let changed = state.forget_events(&RowBuffer::default(), 3, 300).unwrap();
        assert_eq!((changed.len(), state.events_written(), state.meta.events_bytes), (0, 3, 300));
        assert!(!super::super::rows::take_dirty(&mut state).is_empty(), "it is written");
        let spans = [(0, 100), (200, 100), (200, 101), (300, 100)];
        let left = spans.map(|(offset, len)| ends_by(EventSpan::new(offset, len, true), 300));
        assert_eq!(left, [true, true, false, false]);
    }
}
