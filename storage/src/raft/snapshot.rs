//! Snapshots on their way: a state machine is cut into pieces here, put together there.
//!
//! A snapshot of a group is sent one state machine after another, so that neither end holds more than
//! one of them in memory. For each the leader asks how much the receiver holds, and sends all rows
//! and the events beyond that. Each is installed durably when its last piece is there. At the end the
//! leader claims a position, and openraft takes the snapshot over.
//!
//! ```text
//! leader                                   receiver
//!   Offer(A) ------------------------------> makes durable what it has of A
//!   <------------------------------- Held(position, bytes of events)
//!   Piece(A, 0) .. Piece(A, n, last) ------> installs A durably
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
//! travels in parts, in pieces that follow one another and name its key again. The keys of a dump differ, so
//! that a key which comes twice in a row can mean nothing else.
//!
//! Invariants:
//! - Pieces are put together only in order, and only of one transfer of one leader: two dumps of one
//!   state machine may differ.
//! - A group receives at most one state machine at a time, and its size is bounded.

use shiioo_actors::domain::ids::StateMachineId;
use shiioo_actors::ports::{Dump, Found, PEER_MESSAGE_BYTES_MAX};
use tokio::time::{Duration, Instant};

use super::wire::Piece;
use crate::log::record::Vote;

/// Bytes of rows and events in a piece; a row that is larger by itself travels alone.
const PIECE_BYTES_MAX: usize = 1 << 20;

/// Bytes of a piece that holds one row, beside the row's value: its key, and what a piece is made of.
const PIECE_HEAD_BYTES_MAX: usize = 64 << 10;

/// Bytes of a row's value that travel at once; the rest follows in pieces of its own. As many as fit: a
/// version of the program that does not put rows together understands everything that it could be sent
/// before.
const VALUE_BYTES_MAX: usize = PEER_MESSAGE_BYTES_MAX - PIECE_HEAD_BYTES_MAX;

/// Time without another piece after which a state machine is given up.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Cuts what a state machine holds into pieces, at least one.
pub(crate) fn pieces(
    vote: Vote,
    transfer: u64,
    part: StateMachineId,
    dump: Dump,
) -> impl Iterator<Item = Piece> {
    let position = dump.position.unwrap_or_default();
    let mut head = Piece::new(vote, transfer, part, position);
    head.events_from = dump.events_from;
    let mut rows = dump.rows.into_iter().flat_map(row_parts).peekable();
    let mut events = dump.events;
    let mut number = 0;
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
        number += 1;
        Some(head.with_contents(number - 1, is_over, taken, taken_events))
    })
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

/// Adds a row, or the next part of the last one.
fn add_row(rows: &mut Vec<Found>, (key, value): Found) {
    match rows.last_mut() {
        Some((last, begun)) if *last == key => begun.extend(value),
        _ => rows.push((key, value)),
    }
}

/// Puts the state machines of one group together, one at a time.
#[derive(Debug, Default)]
pub(crate) struct SnapshotAssembler(Option<Incoming>);

#[derive(Debug)]
struct Incoming {
    vote: Vote,
    transfer: u64,
    part: StateMachineId,
    next: u32,
    bytes: usize,
    dump: Dump,
    touched: Instant,
}

impl SnapshotAssembler {
    /// Adds a piece. Gives the state machine with its last one.
    pub fn add(
        &mut self,
        piece: Piece,
        now: Instant,
    ) -> Result<Option<(StateMachineId, Dump)>, String> {
        piece.check()?;
        self.drop_idle(now);
        // A first piece begins anew, also after one that was lost.
        if piece.number == 0 {
            self.begin(&piece, now)?;
        }
        let Some(incoming) = self.0.as_mut().filter(|it| it.is_next(&piece)) else {
            return Err("a piece of a snapshot that is not under way here".into());
        };
        let is_last = piece.is_last;
        let (rows, events) = piece.into_contents();
        incoming.bytes += rows.iter().map(Dump::cost).sum::<usize>() + events.len();
        // Counted before anything is kept, so that the bound is never passed.
        if incoming.bytes > Dump::BYTES_MAX {
            self.0 = None;
            return Err(format!("a state machine of more than {} bytes", Dump::BYTES_MAX));
        }
        rows.into_iter().for_each(|row| add_row(&mut incoming.dump.rows, row));
        incoming.dump.events.extend(events);
        incoming.next += 1;
        incoming.touched = now;
        Ok(self.0.take_if(|_| is_last).map(|it| (it.part, it.dump)))
    }

    /// Gives up a state machine that nobody goes on with.
    pub fn drop_idle(&mut self, now: Instant) {
        if self.0.as_ref().is_some_and(|it| now.duration_since(it.touched) > IDLE_MAX) {
            self.0 = None;
        }
    }

    fn begin(&mut self, piece: &Piece, now: Instant) -> Result<(), String> {
        let Piece { vote, transfer, part, position, events_from, .. } = *piece;
        // By term, then by the leader's own number: a piece of an earlier transfer may be late, and
        // must not throw away what a later one has sent.
        if self.0.as_ref().is_some_and(|it| (it.vote.term, it.transfer) > (vote.term, transfer)) {
            return Err("a newer snapshot is under way".into());
        }
        let dump = Dump { position: Some(position), events_from, ..Dump::default() };
        self.0 = Some(Incoming { vote, transfer, part, next: 0, bytes: 0, dump, touched: now });
        Ok(())
    }
}

impl Incoming {
    fn is_next(&self, piece: &Piece) -> bool {
        (self.vote, self.transfer, self.part, self.next)
            == (piece.vote, piece.transfer, piece.part, piece.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shiioo_actors::domain::ids::{Position, RaftId};

    const AT: Position = Position { term: 3, index: 44 };
    const VOTE: Vote = Vote { term: 3, node: RaftId(1), committed: true };

    fn dump(rows: usize, bytes: usize, events: usize) -> Dump {
        let rows = (0..rows).map(|at| (at.to_be_bytes().to_vec(), vec![7; bytes])).collect();
        Dump { position: Some(AT), rows, events_from: 9, events: vec![8; events] }
    }

    fn sent(transfer: u64, dump: &Dump) -> Vec<Piece> {
        pieces(VOTE, transfer, StateMachineId::System, dump.clone()).collect()
    }

    #[test]
    fn what_is_cut_is_put_together_again() {
        let dumps = [
            dump(0, 0, 0),
            dump(1, 3 << 20, 5),
            dump(5000, 1000, 3 << 20),
            dump(3, 900_000, 1),
            dump(0, 0, 2 << 20),
            dump(3, VALUE_BYTES_MAX, 1),
            dump(3, VALUE_BYTES_MAX + 1, 1),
            dump(2, 2 * PEER_MESSAGE_BYTES_MAX, 1),
        ];
        for dump in dumps {
            let pieces = sent(0, &dump);
            let longest = pieces.iter().map(|piece| crate::raft::wire::encode(piece).len()).max();
            assert!(longest <= Some(PEER_MESSAGE_BYTES_MAX), "{longest:?} bytes fit no message");
            let small = |piece: &Piece| {
                piece.clone().into_contents().0.len() <= 1
                    || crate::raft::wire::encode(piece).len() <= PIECE_BYTES_MAX
            };
            assert!(pieces.iter().all(small));
            let mut assembler = SnapshotAssembler::default();
            let (last, others) = pieces.split_last().unwrap();
            for piece in others {
                assert_eq!(assembler.add(piece.clone(), Instant::now()), Ok(None));
            }
            let whole = assembler.add(last.clone(), Instant::now()).unwrap();
            assert_eq!(whole, Some((StateMachineId::System, dump)));
        }
    }

    #[test]
    fn pieces_of_two_transfers_do_not_mix() {
        let (old, new) = (sent(0, &dump(4, 900_000, 0)), sent(1, &dump(4, 800_000, 0)));
        let mut assembler = SnapshotAssembler::default();
        let mut take = |piece: &Piece| assembler.add(piece.clone(), Instant::now());
        assert_eq!(take(&old[0]), Ok(None));
        assert_eq!(take(&new[0]), Ok(None));
        assert!(take(&old[1]).is_err(), "of the one before");
        assert!(take(&old[0]).is_err(), "begins the one before again");
        assert!(take(&new[2]).is_err(), "one is missing");
        assert_eq!(take(&new[1]), Ok(None));
        assert!(take(&new[1]).is_err(), "twice");
        assert_eq!(take(&new[2]), Ok(None));
        assert!(take(&new[3]).unwrap().is_some());
    }

    #[test]
    fn what_no_leader_sends_is_refused() {
        let mut assembler = SnapshotAssembler::default();
        let mut refuses = |piece| assembler.add(piece, Instant::now()).is_err();
        let piece = |vote, at, number| {
            let piece = Piece::new(vote, 0, StateMachineId::System, at);
            piece.with_contents(number, true, Vec::new(), Vec::new())
        };
        assert!(refuses(piece(Vote { committed: false, ..VOTE }, AT, 0)));
        assert!(refuses(piece(VOTE, Position { term: 4, index: 1 }, 0)));
        assert!(refuses(piece(VOTE, AT, 1)), "not the first");
        assert!(!refuses(piece(VOTE, AT, 0)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_goes_on_with_is_given_up() {
        let pieces = sent(0, &dump(2, 900_000, 0));
        let mut assembler = SnapshotAssembler::default();
        assert_eq!(assembler.add(pieces[0].clone(), Instant::now()), Ok(None));
        tokio::time::advance(IDLE_MAX * 2).await;
        assert!(assembler.add(pieces[1].clone(), Instant::now()).is_err());
    }
}
