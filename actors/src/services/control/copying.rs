//! What the target of a move has of a tenant, and the pieces of what it lacks. Pure.
//!
//! The source is read several times: while it works, and once more when it stands still. So the first reading takes
//! long and holds nobody up, and the last has only what has changed since. Each is taken part by part, and none is kept:
//! rows are told apart by their hashes.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::vec;

use sha2::{Digest, Sha256};

use crate::command::{MovedPiece, MovedRow};
use crate::ports::{Dump, DumpPart, Held};
use crate::state::tenant::is_of_presence;

/// Bytes of rows and events in a piece, about. A piece is one entry of the target's log, which other tenants'
/// entries wait behind.
const PIECE_BYTES_MAX: usize = 512 << 10;

/// Bytes of memory that the hashes of a tenant's rows may take. About five million rows have room.
const KNOWN_BYTES_MAX: usize = 512 << 20;

/// Bytes of memory that a row is taken to cost beside its key.
const KNOWN_ROW_BYTES: usize = 80;

/// The beginning of a row's hash: that of two values of one key is the same by chance less often than a disk
/// reads wrongly unnoticed.
type RowHash = [u8; 16];

/// What the target has.
#[derive(Debug)]
pub(super) struct Copied {
    rows: BTreeMap<Vec<u8>, RowHash>,
    /// Of the reading before, those that the present one has not come to.
    before: BTreeMap<Vec<u8>, RowHash>,
    /// What both cost in memory, bytes.
    known_bytes: usize,
    /// What they may cost, bytes.
    known_bytes_max: usize,
    events: u64,
    /// The number of the next piece.
    next: u32,
}

/// Says that a tenant has too many rows to be moved.
#[derive(Debug, thiserror::Error)]
#[error(
    "the tenant has more rows than can be told apart while it moves: their hashes take more than {0} bytes; delete \
     what is not needed, or leave the tenant where it is"
)]
pub(super) struct TooManyRows(usize);

impl Default for Copied {
    fn default() -> Self {
        Self::with_known_bytes(KNOWN_BYTES_MAX)
    }
}

impl Copied {
    /// Begins with nothing, and keeps hashes of rows that take so many bytes at most.
    fn with_known_bytes(known_bytes_max: usize) -> Self {
        let (rows, before) = (BTreeMap::new(), BTreeMap::new());
        Self { rows, before, known_bytes: 0, known_bytes_max, events: 0, next: 0 }
    }

    /// Tells whether nothing was sent yet.
    pub const fn is_empty(&self) -> bool {
        self.next == 0
    }

    /// What the source need not read again: its rows are read whole each time.
    pub fn held(&self) -> Held {
        Held { position: None, events: self.events }
    }

    /// Begins another reading.
    pub fn begin(&mut self) {
        self.before.append(&mut self.rows);
    }

    /// Takes the next part of what the source holds now, and gives the pieces that the target lacks. All of them are to
    /// be sent.
    ///
    /// # Errors
    /// When there are too many rows.
    pub fn take(&mut self, part: DumpPart) -> Result<Pieces<'_>, TooManyRows> {
        let mut changed = Vec::new();
        for (key, value) in part.rows.into_iter().filter(|(key, _)| !is_of_presence(key)) {
            let hash = hash_of(&value);
            let before = self.before.remove(&key);
            if before.is_none() {
                self.known_bytes += key.len() + KNOWN_ROW_BYTES;
            }
            self.rows.insert(key.clone(), hash);
            if before != Some(hash) {
                changed.push((key, Some(value)));
            }
        }
        if self.known_bytes > self.known_bytes_max {
            return Err(TooManyRows(self.known_bytes_max));
        }
        self.events += part.events.len() as u64;
        Ok(self.pieces(changed, part.events, false))
    }

    /// Ends the reading, and gives the pieces of what the source does not hold any more. The last reading ends with one
    /// that says so.
    pub fn end(&mut self, is_last: bool) -> Pieces<'_> {
        let gone = std::mem::take(&mut self.before).into_keys();
        let gone: Vec<MovedRow> = gone.map(|key| (key, None)).collect();
        self.known_bytes -= gone.iter().map(|(key, _)| key.len() + KNOWN_ROW_BYTES).sum::<usize>();
        self.pieces(gone, Vec::new(), is_last)
    }

    fn pieces(&mut self, rows: Vec<MovedRow>, events: Vec<u8>, is_last: bool) -> Pieces<'_> {
        let has_any = is_last || !rows.is_empty() || !events.is_empty();
        Pieces {
            next: &mut self.next,
            rows: rows.into_iter().peekable(),
            rest: None,
            events,
            events_at: 0,
            is_last,
            is_over: !has_any,
        }
    }
}

fn hash_of(value: &[u8]) -> RowHash {
    let hash: [u8; 32] = Sha256::digest(value).into();
    let [first, _] = [0, 16].map(|at| std::array::from_fn(|index| hash[at + index]));
    first
}

/// The pieces of a part of one reading.
pub(super) struct Pieces<'a> {
    next: &'a mut u32,
    rows: Peekable<vec::IntoIter<MovedRow>>,
    /// What is left of a row that is too large for one piece.
    rest: Option<(Vec<u8>, Vec<u8>)>,
    events: Vec<u8>,
    events_at: usize,
    is_last: bool,
    is_over: bool,
}

impl Iterator for Pieces<'_> {
    type Item = MovedPiece;

    fn next(&mut self) -> Option<MovedPiece> {
        if self.is_over {
            return None;
        }
        let number = *self.next;
        *self.next += 1;
        let (rows, begun, bytes) = self.next_rows();
        let events = match begun.is_empty() {
            true => self.next_events(bytes),
            false => Vec::new(),
        };
        let has_rows = self.rest.is_some() || self.rows.peek().is_some();
        self.is_over = !has_rows && self.events_at == self.events.len();
        let is_last = self.is_last && self.is_over;
        Some(MovedPiece { number, rows, begun, events, is_last })
    }
}

impl Pieces<'_> {
    /// Gives the rows of the next piece, the beginning of the row after them, and their bytes.
    fn next_rows(&mut self) -> (Vec<MovedRow>, Vec<u8>, usize) {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        if let Some((key, mut value)) = self.rest.take() {
            if value.len() > PIECE_BYTES_MAX {
                let rest = value.split_off(PIECE_BYTES_MAX);
                self.rest = Some((key, rest));
                return (rows, value, PIECE_BYTES_MAX);
            }
            bytes += Dump::cost_of(&key, value.len());
            rows.push((key, Some(value)));
        }
        let cost = |(key, value): &MovedRow| Dump::cost_of(key, value.as_ref().map_or(0, Vec::len));
        while let Some(row) = self.rows.next_if(|row| bytes + cost(row) <= PIECE_BYTES_MAX) {
            bytes += cost(&row);
            rows.push(row);
        }
        // A row that fits into no piece begins with the next, alone.
        if bytes == 0
            && let Some((key, Some(value))) = self.rows.next()
        {
            self.rest = Some((key, value));
            return self.next_rows();
        }
        (rows, Vec::new(), bytes)
    }

    /// Gives whole events up to the rest of a piece, and at least one where a piece has nothing else.
    fn next_events(&mut self, mut bytes: usize) -> Vec<u8> {
        let left = &self.events[self.events_at..];
        let mut taken = 0;
        for line in left.split_inclusive(|byte| *byte == b'\n') {
            if bytes > 0 && bytes + line.len() > PIECE_BYTES_MAX {
                break;
            }
            bytes += line.len();
            taken += line.len();
        }
        let events = left[..taken].to_vec();
        self.events_at += taken;
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(keys: std::ops::Range<u32>) -> DumpPart {
        let row = |key: u32| (key.to_be_bytes().to_vec(), vec![1]);
        DumpPart { rows: keys.map(row).collect(), events: Vec::new() }
    }

    /// Reads what the source holds now, and returns how many rows the target lacks.
    fn read(copied: &mut Copied, keys: std::ops::Range<u32>) -> Result<usize, TooManyRows> {
        copied.begin();
        let sent: usize = copied.take(rows(keys))?.map(|piece| piece.rows.len()).sum();
        Ok(sent + copied.end(false).map(|piece| piece.rows.len()).sum::<usize>())
    }

    #[test]
    fn more_rows_than_can_be_told_apart_end_the_copy() {
        const ROWS: u32 = 10;
        let a_row = KNOWN_ROW_BYTES + size_of::<u32>();
        let mut copied = Copied::with_known_bytes(ROWS as usize * a_row);
        assert_eq!(read(&mut copied, 0..ROWS).unwrap(), 10);
        // Read again they are the same rows, ...
        assert_eq!(read(&mut copied, 0..ROWS).unwrap(), 0);
        // ... those that go make room for others, in the reading after, ...
        assert_eq!(read(&mut copied, 5..ROWS).unwrap(), 5);
        assert_eq!(read(&mut copied, 5..ROWS + 5).unwrap(), 5);
        // ... and one more is too many, whichever reading comes to it.
        let error = read(&mut copied, 5..ROWS + 6).unwrap_err();
        assert!(error.to_string().contains("more than 840 bytes"), "{error}");
        assert!(read(&mut Copied::with_known_bytes(a_row), 0..2).is_err());
        assert_eq!(read(&mut Copied::default(), 0..2).unwrap(), 2);
    }
}
