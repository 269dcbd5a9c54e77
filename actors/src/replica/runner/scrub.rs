//! Reads what is in the files of a replica, piece by piece, to find damage before somebody needs it.

use super::ReplicaRunner;
use crate::domain::ids::StateMachineId;
use crate::ports::StoreError;
use crate::state::StateMachine;

/// Bytes of rows or events that are read at once; one row or event more may be read.
pub(super) const PIECE_BYTES: usize = 1 << 20;
/// Behind all keys: none is as long. The longest are those of locks.
static KEYS_END: [u8; 1024] = [u8::MAX; 1024];

/// Rows that are read at once.
const PIECE_ROWS: usize = 256;

/// How far a scrub has come in one replica.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubCursor {
    /// The key from which on rows have not been read; `None` when all have.
    rows_from: RowsFrom,
    /// Bytes of events that have been read.
    events_to: u64,
    /// Whether events have had checksums so far.
    is_sealed: bool,
}

/// Where the rows go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum RowsFrom {
    #[default]
    Beginning,
    After(Vec<u8>),
    End,
}

impl<M: StateMachine> ReplicaRunner<M> {
    /// Reads the next piece, whose checksums are compared. Returns where to go on; `None` at the end.
    ///
    /// # Errors
    /// When something is not as it was written, or the files cannot be read.
    pub(super) fn scrub(&self, cursor: ScrubCursor) -> Result<Option<ScrubCursor>, StoreError> {
        let ScrubCursor { rows_from, events_to, mut is_sealed } = cursor;
        if rows_from == RowsFrom::End {
            let total = self.rows.events_total();
            if events_to >= total {
                return Ok(None);
            }
            let events_to = self.check_some_events(events_to, total, &mut is_sealed)?;
            return Ok(Some(ScrubCursor { rows_from, events_to, is_sealed }));
        }
        let rows_from = self.read_rows(rows_from, |_, _| ())?;
        Ok(Some(ScrubCursor { rows_from, events_to, is_sealed }))
    }

    /// Reads the next rows, and shows each of them. The index compares their checksums.
    pub(super) fn read_rows(
        &self,
        rows_from: RowsFrom,
        mut see: impl FnMut(&[u8], &[u8]),
    ) -> Result<RowsFrom, StoreError> {
        let mut from = match rows_from {
            RowsFrom::Beginning => Vec::new(),
            // The smallest key after it.
            RowsFrom::After(key) => [key, vec![0]].concat(),
            RowsFrom::End => return Ok(RowsFrom::End),
        };
        let mut bytes = 0;
        for _ in 0..PIECE_ROWS {
            // One by one: how large the next ones are is not known.
            let found = self.rows.scan(&from, &KEYS_END, 1, false)?;
            let Some((key, value)) = found.into_iter().next() else { return Ok(RowsFrom::End) };
            see(&key, &value);
            bytes += key.len() + value.len();
            if bytes >= PIECE_BYTES {
                return Ok(RowsFrom::After(key));
            }
            from = [key, vec![0]].concat();
        }
        from.pop();
        Ok(RowsFrom::After(from))
    }

    /// Checks events from a byte on, at least one. Returns where the next one begins.
    fn check_some_events(
        &self,
        from: u64,
        total: u64,
        is_sealed: &mut bool,
    ) -> Result<u64, StoreError> {
        let rest = usize::try_from(total - from).unwrap_or(usize::MAX);
        let mut len = rest.min(PIECE_BYTES);
        loop {
            let bytes = self.rows.read_events(from, len)?;
            let whole = M::check_events(&bytes, is_sealed);
            match whole.map_err(|at| rotten_event(self.part, from + at as u64))? {
                // An event that is larger than a piece.
                0 if len < rest => len = rest.min(len * 2),
                0 => return Err(rotten_event(self.part, from)),
                whole => return Ok(from + whole as u64),
            }
        }
    }
}

/// Makes the error about an event that is not as it was written.
pub(super) fn rotten_event(part: StateMachineId, offset: u64) -> StoreError {
    StoreError::Damaged {
        file: format!("the events of {part}"),
        offset,
        what: "an event is not as it was written".to_owned(),
    }
}
