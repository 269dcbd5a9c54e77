//! Snapshots on their way: cut into chunks here, put together there.
//!
//! A snapshot claims a position and carries a dump, which holds what is claimed or more: it is made
//! while the group goes on. Entries that it holds beyond the claim are delivered once more and
//! skipped by the state machine, which knows what it has.
//!
//! Invariants:
//! - Chunks are put together only in order, and only of one transfer of one leader: two dumps of
//!   the same claim may differ.
//! - A group receives at most one snapshot at a time, and its size is bounded.

use shiioo_actors::domain::ids::Position;
use shiioo_actors::ports::{Dump, Found};
use tokio::time::{Duration, Instant};

use super::wire::Chunk;
use crate::log::record::{Members, Vote};

/// Bytes of rows in a chunk; a row that is larger by itself travels alone.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Bytes of rows in a snapshot.
const SNAPSHOT_BYTES_MAX: usize = 512 << 20;

/// Bytes of memory that a row is taken to cost beside its key and value.
const ROW_BYTES: usize = 64;

/// Time without another chunk after which a snapshot is given up.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Cuts a snapshot that claims everything up to `upto` into chunks, at least one.
pub(crate) fn chunks(
    vote: Vote,
    transfer: u64,
    upto: Position,
    members: Option<(Position, Members)>,
    dump: Dump,
) -> impl Iterator<Item = Chunk> {
    let empty = Chunk::empty(vote, transfer, upto, members, dump.position);
    let mut rows = dump.rows.into_iter().peekable();
    let mut number = 0;
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(row) =
            rows.next_if(|row| taken.is_empty() || bytes + cost(row) <= CHUNK_BYTES_MAX)
        {
            bytes += cost(&row);
            taken.push(row);
        }
        is_over = rows.peek().is_none();
        number += 1;
        Some(empty.with_rows(number - 1, is_over, taken))
    })
}

fn cost((key, value): &Found) -> usize {
    key.len() + value.len() + ROW_BYTES
}

/// A snapshot with all its chunks.
#[derive(Debug, PartialEq)]
pub(crate) struct Assembled {
    pub vote: Vote,
    pub upto: Position,
    pub members: Option<(Position, Members)>,
    pub dump: Dump,
}

/// Puts the snapshot of one group together.
#[derive(Debug, Default)]
pub(crate) struct SnapshotAssembler(Option<Incoming>);

#[derive(Debug)]
struct Incoming {
    vote: Vote,
    transfer: u64,
    next: u32,
    bytes: usize,
    rows: Vec<Found>,
    touched: Instant,
}

impl SnapshotAssembler {
    /// Adds a chunk. Gives the snapshot with its last one.
    pub fn add(&mut self, chunk: Chunk, now: Instant) -> Result<Option<Assembled>, String> {
        chunk.check()?;
        self.drop_idle(now);
        // A first chunk begins anew, also after one that was lost: a transfer is not resumed.
        if chunk.number == 0 {
            self.begin(&chunk, now)?;
        }
        let Some(incoming) = self.0.as_mut().filter(|it| it.is_next(&chunk)) else {
            return Err("a chunk of a snapshot that is not under way here".into());
        };
        let (upto, members, position) = (chunk.upto, chunk.members.clone(), chunk.dumped);
        let (vote, is_last) = (chunk.vote, chunk.is_last);
        let rows = chunk.into_rows();
        incoming.bytes += rows.iter().map(cost).sum::<usize>();
        // Counted before the rows are kept, so that the bound is never passed.
        if incoming.bytes > SNAPSHOT_BYTES_MAX {
            self.0 = None;
            return Err(format!("a snapshot of more than {SNAPSHOT_BYTES_MAX} bytes"));
        }
        incoming.rows.extend(rows);
        incoming.next += 1;
        incoming.touched = now;
        if !is_last {
            return Ok(None);
        }
        let rows = self.0.take().map(|it| it.rows).unwrap_or_default();
        Ok(Some(Assembled { vote, upto, members, dump: Dump { position, rows } }))
    }

    /// Gives up a snapshot that nobody goes on with.
    pub fn drop_idle(&mut self, now: Instant) {
        if self.0.as_ref().is_some_and(|it| now.duration_since(it.touched) > IDLE_MAX) {
            self.0 = None;
        }
    }

    fn begin(&mut self, chunk: &Chunk, now: Instant) -> Result<(), String> {
        let (vote, transfer) = (chunk.vote, chunk.transfer);
        // By term, then by the leader's own number: a chunk of an earlier transfer may be late, and
        // must not throw away what a later one has sent.
        if self.0.as_ref().is_some_and(|it| (it.vote.term, it.transfer) > (vote.term, transfer)) {
            return Err("a newer snapshot is under way".into());
        }
        let rows = Vec::new();
        self.0 = Some(Incoming { vote, transfer, next: 0, bytes: 0, rows, touched: now });
        Ok(())
    }
}

impl Incoming {
    fn is_next(&self, chunk: &Chunk) -> bool {
        (self.vote, self.transfer, self.next) == (chunk.vote, chunk.transfer, chunk.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPTO: Position = Position { term: 3, index: 40 };
    const VOTE: Vote = Vote { term: 3, node: 1, committed: true };

    fn dump(rows: usize, bytes: usize) -> Dump {
        let rows = (0..rows).map(|at| (at.to_be_bytes().to_vec(), vec![7; bytes])).collect();
        Dump { position: Some(Position { term: 3, index: 44 }), rows }
    }

    fn sent(transfer: u64, dump: &Dump) -> Vec<Chunk> {
        let members = Members { voters: vec![vec![1, 2]], nodes: vec![1, 2, 3] };
        let members = Some((Position { term: 1, index: 0 }, members));
        chunks(VOTE, transfer, UPTO, members, dump.clone()).collect()
    }

    #[test]
    fn what_is_cut_is_put_together_again() {
        for dump in [dump(0, 0), dump(1, 3 << 20), dump(5000, 1000), dump(3, 900_000)] {
            let chunks = sent(0, &dump);
            let small = |chunk: &Chunk| {
                chunk.clone().into_rows().len() <= 1
                    || crate::raft::wire::encode(chunk).len() <= CHUNK_BYTES_MAX
            };
            assert!(chunks.iter().all(small));
            let mut assembler = SnapshotAssembler::default();
            let (last, others) = chunks.split_last().unwrap();
            for chunk in others {
                assert_eq!(assembler.add(chunk.clone(), Instant::now()), Ok(None));
            }
            let whole = assembler.add(last.clone(), Instant::now()).unwrap().unwrap();
            assert_eq!((whole.upto, whole.dump), (UPTO, dump));
        }
    }

    #[test]
    fn chunks_of_two_transfers_do_not_mix() {
        let (old, new) = (sent(0, &dump(4, 900_000)), sent(1, &dump(4, 800_000)));
        let mut assembler = SnapshotAssembler::default();
        let mut take = |chunk: &Chunk| assembler.add(chunk.clone(), Instant::now());
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
        let chunk = sent(0, &dump(1, 1)).remove(0);
        let mut assembler = SnapshotAssembler::default();
        let mut refuses = |chunk| assembler.add(chunk, Instant::now()).is_err();
        assert!(refuses(Chunk::empty(Vote { committed: false, ..VOTE }, 0, UPTO, None, None)));
        assert!(refuses(Chunk::empty(VOTE, 0, Position { term: 4, index: 1 }, None, None)));
        let nobody = Members { voters: vec![vec![]], nodes: vec![] };
        assert!(refuses(Chunk::empty(VOTE, 0, UPTO, Some((UPTO, nobody)), None)));
        assert!(refuses(chunk.with_rows(1, true, Vec::new())), "not the first");
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_goes_on_with_is_given_up() {
        let chunks = sent(0, &dump(2, 900_000));
        let mut assembler = SnapshotAssembler::default();
        assert_eq!(assembler.add(chunks[0].clone(), Instant::now()), Ok(None));
        tokio::time::advance(IDLE_MAX * 2).await;
        assert!(assembler.add(chunks[1].clone(), Instant::now()).is_err());
    }
}
