//! Snapshots on their way: a state machine is cut into pieces here, put together there.
//!
//! A snapshot of a group is sent one state machine after another. For each the leader asks how much the receiver holds,
//! and sends all rows and the events beyond that, which it reads part by part while they are sent. The receiver writes
//! each piece to staged files, and has them take the place of its own with the last one. At the end the
//! leader claims a position, and openraft takes the snapshot over.
//!
//! ```text
//! leader                                   receiver
//!   Offer(A) ------------------------------> makes durable what it has of A
//!   <------------------------------- Held(position, bytes of events)
//!   RoomFor(A, bytes) ---------------------> has as much beside what the log needs, or says no
//!   Piece(A, 0) .. Piece(A, n, last) ------> writes them down, puts A in its place durably
//!   Offer(B) ...                             B is as far already: nothing is sent
//!   Claim(upto, members, [A, B]) ----------> lets go of what it has beside A and B, raises its mark
//! ```
//!
//! What a state machine holds is committed, and a state machine skips entries that it holds. So
//! each may be further than the claim, a transfer that breaks off does no harm, and the next one
//! sends only what is still missing.
//!
//! A replica whose files of a state machine are damaged holds nothing that can be relied on. It asks for
//! all of it (`Resend`), is asked how much it holds like any other, says 'nothing', and gets everything.
//!
//! A row may be longer than a message between nodes: a run holds 16 MiB of outputs beside its workflow. It
//! travels in several pieces that follow one another and name its key again. The keys of a dump differ, so
//! that a key which comes twice in a row can mean nothing else.
//!
//! Invariants:
//! - Pieces are put together only in order, and only of one transfer of one leader: two dumps of one
//!   state machine may differ.
//! - A group receives at most one state machine at a time.
//! - Neither end holds more than two parts of 1 MiB, and a row, which is bounded.

use shiioo_actors::domain::ids::{GroupId, Position, StateMachineId};
use shiioo_actors::ports::{
    ApplySink, Dump, DumpPart, Found, PEER_MESSAGE_BYTES_MAX, Staged, Staging, StoreError,
};
use tokio::time::{Duration, Instant};

use super::snapshot_wire::Piece;
use crate::log::record::Vote;

/// Bytes of rows and events in a piece; a row that is larger by itself travels alone.
const PIECE_BYTES_MAX: usize = 1 << 20;

/// Bytes of a piece that holds one row, beside the row's value: its key, and what a piece is made of.
const PIECE_HEAD_BYTES_MAX: usize = 64 << 10;

/// Bytes of a row's value that travel at once; the rest follows in pieces of its own. As many as fit: a
/// version of the program that does not put rows together understands everything that it could be sent
/// before.
const VALUE_BYTES_MAX: usize = PEER_MESSAGE_BYTES_MAX - PIECE_HEAD_BYTES_MAX;

/// Bytes of a row that is put together. No state machine writes one that is half as long.
const ROW_BYTES_MAX: usize = 64 << 20;

/// Time without another piece after which a state machine is given up.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Cuts the parts of a dump into pieces.
pub(crate) struct Cutter {
    head: Piece,
    next: u32,
}

impl Cutter {
    pub fn new(vote: Vote, transfer: u64, part: StateMachineId, dump: &Dump) -> Self {
        let mut head = Piece::new(vote, transfer, part, dump.position);
        head.events_from = dump.events_from;
        Self { head, next: 0 }
    }

    /// Cuts the next part into pieces, at least one.
    pub fn cut(&mut self, part: DumpPart, is_last: bool) -> impl Iterator<Item = Piece> {
        let DumpPart { rows, mut events } = part;
        let mut rows = rows.into_iter().flat_map(row_parts).peekable();
        let mut is_over = false;
        std::iter::from_fn(move || {
            if is_over {
                return None;
            }
            let mut taken = Vec::new();
            let mut bytes = 0;
            while let Some(row) =
                rows.next_if(|row| taken.is_empty() || bytes + Dump::cost(row) <= PIECE_BYTES_MAX)
            {
                bytes += Dump::cost(&row);
                taken.push(row);
            }
            let rest = events.split_off(events.len().min(PIECE_BYTES_MAX.saturating_sub(bytes)));
            let taken_events = std::mem::replace(&mut events, rest);
            is_over = rows.peek().is_none() && events.is_empty();
            self.next += 1;
            Some(self.head.with_contents(self.next - 1, is_over && is_last, taken, taken_events))
        })
    }
}

/// Cuts a row into parts that a piece can hold. Each has the row's key.
fn row_parts((key, mut value): Found) -> impl Iterator<Item = Found> {
    let mut key = Some(key);
    std::iter::from_fn(move || {
        let own = key.take()?;
        if value.len() <= VALUE_BYTES_MAX {
            return Some((own, std::mem::take(&mut value)));
        }
        let rest = value.split_off(VALUE_BYTES_MAX);
        key = Some(own.clone());
        Some((own, std::mem::replace(&mut value, rest)))
    })
}

/// Why a piece was not kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PieceError {
    /// The disk has no room. Nothing is left of what came before.
    NoRoom,
    /// It is none, or comes at the wrong time, or the files fail.
    Refused(String),
}

impl From<String> for PieceError {
    fn from(why: String) -> Self {
        Self::Refused(why)
    }
}

impl From<StoreError> for PieceError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::NoRoom,
            error => Self::Refused(error.to_string()),
        }
    }
}

/// Writes the state machines of one group to staged files, one at a time.
#[derive(Debug, Default)]
pub(crate) struct SnapshotAssembler(Option<Incoming>);

#[derive(Debug)]
struct Incoming {
    vote: Vote,
    transfer: u64,
    part: StateMachineId,
    next: u32,
    position: Position,
    events_from: u64,
    /// The last row that has come: the next piece may have more of it.
    row: Option<Found>,
    files: Box<dyn Staging>,
    touched: Instant,
}

impl SnapshotAssembler {
    /// Adds a piece. Gives the state machine with its last one.
    pub async fn add(
        &mut self,
        group: GroupId,
        piece: Piece,
        sink: &dyn ApplySink,
        now: Instant,
    ) -> Result<Option<(StateMachineId, Staged)>, PieceError> {
        piece.check()?;
        self.drop_idle(now);
        // A first piece begins anew, also after one that was lost.
        if piece.number == 0 {
            self.begin(group, &piece, sink, now).await?;
        }
        // Taken out: what fails, or is not awaited to its end, is not gone on with.
        let Some(mut incoming) = self.0.take_if(|it| it.is_next(&piece)) else {
            return Err("a piece of a snapshot that is not under way here".to_owned().into());
        };
        let is_last = piece.is_last;
        let part = incoming.join(piece)?;
        incoming.files.put(part).await?;
        incoming.next += 1;
        // After the disk has taken it: however long that was, the sender is not late by it.
        incoming.touched = Instant::now();
        if !is_last {
            self.0 = Some(incoming);
            return Ok(None);
        }
        let Incoming { part, position, events_from, mut files, .. } = incoming;
        files.seal(position).await?;
        Ok(Some((part, Staged { position, events_from, files })))
    }

    /// Gives up a state machine that nobody goes on with.
    pub fn drop_idle(&mut self, now: Instant) {
        if self.0.as_ref().is_some_and(|it| now.saturating_duration_since(it.touched) > IDLE_MAX) {
            self.0 = None;
        }
    }

    async fn begin(
        &mut self,
        group: GroupId,
        piece: &Piece,
        sink: &dyn ApplySink,
        now: Instant,
    ) -> Result<(), PieceError> {
        let Piece { vote, transfer, part, position, events_from, .. } = *piece;
        // By term, then by the leader's own number: a piece of an earlier transfer may be late, and
        // must not throw away what a later one has sent.
        if self.0.as_ref().is_some_and(|it| (it.vote.term, it.transfer) > (vote.term, transfer)) {
            return Err("a newer snapshot is under way".to_owned().into());
        }
        // First: there is one place for staged files of a state machine, and it is waited for.
        self.0 = None;
        let files = sink.stage(group, part, events_from).await?;
        let (next, row, touched) = (0, None, now);
        self.0 = Some(Incoming {
            vote,
            transfer,
            part,
            next,
            position,
            events_from,
            row,
            files,
            touched,
        });
        Ok(())
    }
}

impl Incoming {
    fn is_next(&self, piece: &Piece) -> bool {
        (self.vote, self.transfer, self.part, self.next)
            == (piece.vote, piece.transfer, piece.part, piece.number)
    }

    /// Gives what has come whole with a piece: all but the last row, of which the next piece may have more.
    fn join(&mut self, piece: Piece) -> Result<DumpPart, String> {
        let is_last = piece.is_last;
        let (rows, events) = piece.into_contents();
        let mut whole = Vec::with_capacity(rows.len());
        for (key, value) in rows {
            match &mut self.row {
                Some((last, begun)) if *last == key => {
                    if begun.len() + value.len() > ROW_BYTES_MAX {
                        return Err(format!("a row of more than {ROW_BYTES_MAX} bytes"));
                    }
                    begun.extend(value);
                }
                row => whole.extend(row.replace((key, value))),
            }
        }
        // Events come behind all rows.
        if is_last || !events.is_empty() {
            whole.extend(self.row.take());
        }
        Ok(DumpPart { rows: whole, events })
    }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
pub(crate) mod tests;
