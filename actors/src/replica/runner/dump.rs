//! What one replica sends another: its rows and the events that the other lacks, at one position, part by part.
//!
//! A part is read when it is asked for, from a view of the files as they were at that position. The replica goes on
//! meanwhile, and its actor is not asked. Rot does not travel: the checksums of rows and events are compared.

use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;

use super::ReplicaRunner;
use super::scrub::rotten_event;
use crate::domain::ids::StateMachineId;
use crate::mutants::{self, Mutant};
use crate::ports::{Dump, DumpPart, Held, StoreError, View};
use crate::state::StateMachine;

/// Bytes of rows in a part, or of events. One row, or one event, may make it longer.
const PART_BYTES: usize = 1 << 20;

impl<M: StateMachine> ReplicaRunner<M> {
    /// Returns what the replica holds beyond `held`, all of it durable.
    ///
    /// # Errors
    /// [`StoreError::Full`] while the files lack, for want of room, what was applied.
    pub(super) async fn dump(&mut self, held: Held) -> Result<Option<Dump>, StoreError> {
        self.make_durable().await?;
        let Some(position) = self.applied.filter(|applied| Some(*applied) > held.position) else {
            return Ok(None);
        };
        // The view shows the files. They are at this position only if nothing waits in memory.
        if self.is_dirty() {
            return Err(StoreError::Full);
        }
        let mut events = held.events..self.rows.events_total();
        if events.start > events.end {
            return Err(StoreError::Io {
                what: format!("send a snapshot of {}", self.part),
                source: Arc::new(io::Error::other(
                    "the other replica holds more events, and fewer entries",
                )),
            });
        }
        if mutants::is(Mutant::SnapshotWithoutEvents) {
            events.end = events.start;
        }
        let has_files = self.rows.has_files();
        let bytes = self.bytes_to_take_over(&events)?;
        let parts = match &mut self.rows.store {
            Some(store) => Reader::<M>::over(store.view()?, self.part, events).parts(),
            // They are there, and there was no room to open them.
            None if has_files => return Err(StoreError::Full),
            None => stream::iter([Ok(DumpPart::default())]).boxed(),
        };
        Ok(Some(Dump { position, events_from: held.events, bytes, parts }))
    }

    /// Counts the bytes that whoever takes the replica over needs for that: an index, and the events, which lie there
    /// twice for a moment where they are added to others.
    fn bytes_to_take_over(&self, events: &Range<u64>) -> Result<u64, StoreError> {
        let Some(store) = &self.rows.store else { return Ok(0) };
        let times = if events.start > 0 { 2 } else { 1 };
        Ok(store.stats()?.index_bytes + times * (events.end - events.start))
    }
}

/// Reads the parts of a dump.
struct Reader<M> {
    view: Box<dyn View>,
    part: StateMachineId,
    are_rows_read: bool,
    /// The events that are still to be read, by their bytes.
    events: Range<u64>,
    is_sealed: bool,
    has_given: bool,
    machine: PhantomData<fn() -> M>,
}

impl<M: StateMachine> Reader<M> {
    fn over(view: Box<dyn View>, part: StateMachineId, events: Range<u64>) -> Self {
        Self {
            view,
            part,
            are_rows_read: false,
            events,
            is_sealed: false,
            has_given: false,
            machine: PhantomData,
        }
    }

    fn parts(self) -> stream::BoxStream<'static, Result<DumpPart, StoreError>> {
        stream::try_unfold(self, |mut reader| async move {
            let part = reader.next_part().await?;
            Ok(part.map(|part| (part, reader)))
        })
        .boxed()
    }

    async fn next_part(&mut self) -> Result<Option<DumpPart>, StoreError> {
        let mut part = DumpPart::default();
        if !self.are_rows_read {
            // What is small travels in one part, with its events.
            (part.rows, self.are_rows_read) = self.view.rows(PART_BYTES).await?;
        }
        if self.are_rows_read && !self.events.is_empty() {
            part.events = self.next_events().await?;
        }
        // Whoever takes the dump learns of its end with a part, and of one that holds nothing as well.
        let is_over = part == DumpPart::default() && self.has_given;
        self.has_given = true;
        Ok((!is_over).then_some(part))
    }

    /// Reads whole events, at least one.
    async fn next_events(&mut self) -> Result<Vec<u8>, StoreError> {
        let from = self.events.start;
        let rest = usize::try_from(self.events.end - from).unwrap_or(usize::MAX);
        let mut len = rest.min(PART_BYTES);
        loop {
            let mut bytes = self.view.events(from, len).await?;
            let whole = M::check_events(&bytes, &mut self.is_sealed);
            match whole.map_err(|at| rotten_event(self.part, from + at as u64))? {
                // An event that is larger than a part.
                0 if len < rest => len = rest.min(len * 2),
                0 => return Err(rotten_event(self.part, from)),
                whole => {
                    bytes.truncate(whole);
                    self.events.start += whole as u64;
                    return Ok(bytes);
                }
            }
        }
    }
}
