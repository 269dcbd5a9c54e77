//! Reads the tenant's event log from any of its events on.
//!
//! An event is found by its number without an index: the lines of the log stand in the order of their
//! numbers, so that a place in the middle tells which half holds the number (bisection). A log of a
//! gigabyte takes sixteen such looks, of some kibibytes each. An index would have to be written with
//! every event, and could differ from the log. Who reads on where a page ended names that place, and
//! nothing is bisected.
//!
//! Invariant: what is given is what was written, without a gap. The checksum of each line that is given is
//! verified, where it has one (lines of the first version have none), and its number is the one behind
//! that of the line before. A number that rotted where bisection looked leads it astray; then the first
//! line that is given has not the number that was asked for, which is damage.

use super::TenantState;
use super::events::{read_line, seq_of_line};
use crate::domain::json::Json;
use crate::domain::page::PageBudget;
use crate::ports::StoreError;
use crate::state::RowBuffer;

/// Where bisection ends and reading begins, bytes: few lines are read in vain.
const WINDOW_BYTES: u64 = if cfg!(test) { 64 } else { 16 << 10 };
/// Bytes read at once to find the end of a line, at first. Most lines are shorter.
const LOOK_BYTES: usize = if cfg!(test) { 16 } else { 4 << 10 };
/// Bytes of lines read at once.
const CHUNK_BYTES: usize = if cfg!(test) { 64 } else { 64 << 10 };

/// Names a place between two events of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventPlace {
    /// The number of the event before it; 0 at the beginning.
    pub after: u64,
    /// Where the line of the next event begins, if that is known. A hint.
    pub offset: Option<u64>,
}

/// Holds events that follow each other.
#[derive(Debug, Clone, PartialEq)]
pub struct EventPage {
    /// The events, each a JSON object, without its checksum.
    pub events: Vec<Json>,
    /// The place behind the last of them; where there is none, the one that was asked for.
    pub end: EventPlace,
}

impl From<u64> for EventPlace {
    fn from(after: u64) -> Self {
        Self { after, offset: None }
    }
}

impl TenantState {
    /// Reads the events behind a place, as many as `room` has room for.
    ///
    /// # Errors
    /// When the log cannot be read, or is damaged there.
    pub fn events_after(
        &self,
        rows: &RowBuffer,
        place: EventPlace,
        mut room: PageBudget,
    ) -> Result<EventPage, StoreError> {
        let EventPlace { after, offset } = place;
        let mut page = EventPage { events: Vec::new(), end: place };
        if after >= self.events_written() {
            return Ok(page);
        }
        let log = Log { rows, len: self.meta.events_bytes };
        let at = match offset {
            // A hint from before a repair, or of another replica's file, may be wrong by now.
            Some(at) if at < log.len && log.seq_at(at)? == Some(after + 1) => at,
            _ => log.place_before(after)?,
        };
        let mut lines = Lines { log: &log, at, read: Vec::new(), begin: 0 };
        let mut is_sealed = false;
        while let Some((at, line)) = lines.next()? {
            let seq = seq_of_line(line).ok_or_else(|| damaged(at, "the number of an event"))?;
            if seq <= after {
                continue;
            }
            if seq != page.end.after + 1 {
                return Err(damaged(at, "the order of the events"));
            }
            let event = read_line(line, &mut is_sealed);
            let event =
                Json::from_text(event.ok_or_else(|| damaged(at, "the checksum of an event"))?);
            if !room.take(&event) {
                return Ok(page);
            }
            page.events.push(event);
            page.end = EventPlace { after: seq, offset: Some(at + line.len() as u64) };
        }
        match page.end.after == self.events_written() {
            true => Ok(page),
            false => Err(damaged(log.len, "the end of the events")),
        }
    }
}

fn damaged(offset: u64, what: &str) -> StoreError {
    let what = format!("{what} does not match");
    StoreError::Damaged { file: "events.jsonl".to_owned(), offset, what }
}

/// The lines of a log, as bytes.
struct Log<'a> {
    rows: &'a RowBuffer,
    /// Bytes of all lines.
    len: u64,
}

impl Log<'_> {
    /// Finds the beginning of a line, not far before the event behind number `after`.
    fn place_before(&self, after: u64) -> Result<u64, StoreError> {
        // Lines that begin before `low` have no greater number than `after`, and those that begin at `high` or
        // later have.
        let (mut low, mut high) = (0, if after == 0 { 0 } else { self.len });
        while high - low > WINDOW_BYTES {
            let middle = low + (high - low) / 2;
            // The line that the byte before the middle is in ends there or later.
            let begin = self.end_of_line(middle - 1, high)?;
            if begin >= high {
                high = middle;
                continue;
            }
            let seq = self.seq_at(begin)?;
            match seq.ok_or_else(|| damaged(begin, "the number of an event"))? {
                seq if seq <= after => low = begin,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// Reads the number of the event whose line begins at `begin`. `None` where none begins.
    fn seq_at(&self, begin: u64) -> Result<Option<u64>, StoreError> {
        let len = usize::try_from(self.len - begin).unwrap_or(usize::MAX).min(LOOK_BYTES);
        Ok(seq_of_line(&self.rows.read_events(begin, len)?))
    }

    /// Finds the end of the line that a byte is in, its line break included, unless it is at `high` or later.
    fn end_of_line(&self, from: u64, high: u64) -> Result<u64, StoreError> {
        let (mut at, mut wanted) = (from, LOOK_BYTES);
        while at < high {
            let len = usize::try_from(high - at).unwrap_or(usize::MAX).min(wanted);
            let bytes = self.rows.read_events(at, len)?;
            if let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
                return Ok(at + end as u64 + 1);
            }
            at += len as u64;
            wanted = CHUNK_BYTES.max(wanted);
        }
        Ok(high)
    }
}

/// Reads lines one after another.
struct Lines<'a> {
    log: &'a Log<'a>,
    /// Where the next line begins.
    at: u64,
    /// What was read of the log.
    read: Vec<u8>,
    /// Where the next line begins in `read`.
    begin: usize,
}

impl Lines<'_> {
    /// Gives the next line, with its line break, and where it begins. `None` at the end of the log.
    fn next(&mut self) -> Result<Option<(u64, &[u8])>, StoreError> {
        let mut seen = self.begin;
        let end = loop {
            if let Some(end) = self.read[seen..].iter().position(|byte| *byte == b'\n') {
                break seen + end + 1;
            }
            // Of what was given nothing is kept.
            self.read.drain(..self.begin);
            self.begin = 0;
            seen = self.read.len();
            let from = self.at + seen as u64;
            let left = usize::try_from(self.log.len.saturating_sub(from)).unwrap_or(usize::MAX);
            if left == 0 {
                return Ok(None);
            }
            let more = self.log.rows.read_events(from, left.min(CHUNK_BYTES))?;
            self.read.extend_from_slice(&more);
        };
        let (at, begin) = (self.at, std::mem::replace(&mut self.begin, end));
        self.at += (end - begin) as u64;
        Ok(Some((at, &self.read[begin..end])))
    }
}

#[cfg(test)]
#[path = "event_log_tests.rs"]
mod tests;
