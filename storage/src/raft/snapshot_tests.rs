//! Pieces of one and of several transfers.

use std::sync::Arc;

use parking_lot::Mutex;
use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::ports::{BoxFuture, Place};

use super::*;

const AT: Position = Position { term: 3, index: 44 };
const VOTE: Vote = Vote { term: 3, node: RaftId(1), committed: true };
const GROUP: GroupId = GroupId(4);

/// What has come for one state machine.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Come {
    pub events_from: u64,
    pub rows: Vec<Found>,
    pub events: Vec<u8>,
    pub sealed: Option<Position>,
    /// The largest part.
    pub cost_max: usize,
}

/// Keeps what comes in memory.
#[derive(Debug)]
pub(crate) struct MemStaging(pub Arc<Mutex<Come>>);

impl MemStaging {
    /// Begins with nothing.
    pub fn begin(come: &Arc<Mutex<Come>>, events_from: u64) -> Box<dyn Staging> {
        *come.lock() = Come { events_from, ..Come::default() };
        Box::new(Self(Arc::clone(come)))
    }
}

impl Staging for MemStaging {
    fn put(&mut self, part: DumpPart) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut come = self.0.lock();
        come.cost_max = come.cost_max.max(part.cost());
        come.rows.extend(part.rows);
        come.events.extend(part.events);
        Box::pin(async { Ok(()) })
    }

    fn seal(&mut self, position: Position) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.lock().sealed = Some(position);
        Box::pin(async { Ok(()) })
    }

    fn events_len(&self) -> u64 {
        self.0.lock().events.len() as u64
    }

    fn install(self: Box<Self>, _: Place) -> BoxFuture<'static, Result<(), StoreError>> {
        unreachable!()
    }
}

/// A sink that only stages.
#[derive(Default)]
struct Receiver(Arc<Mutex<Come>>);

impl ApplySink for Receiver {
    fn deliver(&self, _: GroupId, _: shiioo_actors::ports::CommittedEntry) {}

    fn stage(
        &self,
        _: GroupId,
        _: StateMachineId,
        events_from: u64,
    ) -> BoxFuture<'_, Result<Box<dyn Staging>, StoreError>> {
        Box::pin(async move { Ok(MemStaging::begin(&self.0, events_from)) })
    }
}

/// Receives pieces.
#[derive(Default)]
struct Receiving {
    assembler: SnapshotAssembler,
    sink: Receiver,
}

impl Receiving {
    /// Takes a piece. Tells whether it was the last.
    async fn take(&mut self, piece: &Piece) -> Result<bool, PieceError> {
        let taken = self.assembler.add(GROUP, piece.clone(), &self.sink, Instant::now());
        Ok(taken.await?.is_some())
    }
}

fn rows(count: usize, bytes: usize) -> Vec<Found> {
    (0..count).map(|at| (at.to_be_bytes().to_vec(), vec![7; bytes])).collect()
}

/// The parts of a dump: so many rows in each, then the events.
fn parts(rows: &[Found], in_each: usize, events: usize) -> Vec<DumpPart> {
    let of_rows = |rows: &[Found]| DumpPart { rows: rows.to_vec(), events: Vec::new() };
    let events = DumpPart { rows: Vec::new(), events: vec![8; events] };
    rows.chunks(in_each).map(of_rows).chain([events]).collect()
}

fn sent(transfer: u64, parts: Vec<DumpPart>) -> Vec<Piece> {
    let nothing = Box::pin(futures_util::stream::empty());
    let dump = Dump { position: AT, events_from: 9, bytes: 0, parts: nothing };
    let mut cutter = Cutter::new(VOTE, transfer, StateMachineId::System, &dump);
    let count = parts.len();
    let numbered = parts.into_iter().enumerate();
    numbered.flat_map(|(at, part)| cutter.cut(part, at + 1 == count).collect::<Vec<_>>()).collect()
}

#[tokio::test]
async fn what_is_cut_is_put_together_again() {
    for (rows, in_each, events) in [
        (rows(0, 0), 1, 0),
        (rows(1, 3 << 20), 1, 5),
        (rows(5000, 1000), 900, 3 << 20),
        (rows(3, 900_000), 1, 1),
        (rows(0, 0), 1, 2 << 20),
        (rows(3, VALUE_BYTES_MAX), 1, 1),
        (rows(3, VALUE_BYTES_MAX + 1), 1, 1),
        (rows(2, 2 * PEER_MESSAGE_BYTES_MAX), 1, 1),
    ] {
        let pieces = sent(0, parts(&rows, in_each, events));
        let longest = pieces.iter().map(|piece| crate::raft::wire::encode(piece).len()).max();
        assert!(longest <= Some(PEER_MESSAGE_BYTES_MAX), "{longest:?} bytes fit no message");
        let small = |piece: &Piece| {
            piece.clone().into_contents().0.len() <= 1
                || crate::raft::wire::encode(piece).len() <= PIECE_BYTES_MAX
        };
        assert!(pieces.iter().all(small));
        let mut receiving = Receiving::default();
        let (last, others) = pieces.split_last().unwrap();
        for piece in others {
            assert_eq!(receiving.take(piece).await, Ok(false));
        }
        assert_eq!(receiving.take(last).await, Ok(true));
        let come = receiving.sink.0.lock().clone();
        let row = rows.iter().map(Dump::cost).max().unwrap_or_default();
        assert!(come.cost_max <= 2 * PIECE_BYTES_MAX + 2 * row, "{} bytes at once", come.cost_max);
        assert!(come.rows == rows && come.events == vec![8; events]);
        assert_eq!((come.events_from, come.sealed), (9, Some(AT)));
    }
}

#[tokio::test]
async fn pieces_of_two_transfers_do_not_mix() {
    let old = sent(0, parts(&rows(4, 900_000), 1, 1));
    let new = sent(1, parts(&rows(4, 800_000), 1, 1));
    let mut receiving = Receiving::default();
    assert_eq!(receiving.take(&old[0]).await, Ok(false));
    assert_eq!(receiving.take(&new[0]).await, Ok(false));
    assert!(receiving.take(&old[1]).await.is_err(), "of the one before");
    assert!(receiving.take(&old[0]).await.is_err(), "begins the one before again");
    assert!(receiving.take(&new[2]).await.is_err(), "one is missing");
    assert_eq!(receiving.take(&new[1]).await, Ok(false));
    assert!(receiving.take(&new[1]).await.is_err(), "twice");
    for piece in &new[2..4] {
        assert_eq!(receiving.take(piece).await, Ok(false));
    }
    assert_eq!(receiving.take(&new[4]).await, Ok(true));
    assert_eq!(receiving.sink.0.lock().rows, rows(4, 800_000));
}

#[tokio::test]
async fn what_no_leader_sends_is_refused() {
    let mut receiving = Receiving::default();
    let piece = |vote, at, number| {
        let piece = Piece::new(vote, 0, StateMachineId::System, at);
        piece.with_contents(number, true, Vec::new(), Vec::new())
    };
    let later = Position { term: 4, index: 1 };
    let not_committed = Vote { committed: false, ..VOTE };
    for refused in [piece(not_committed, AT, 0), piece(VOTE, later, 0), piece(VOTE, AT, 1)] {
        assert!(receiving.take(&refused).await.is_err(), "{refused:?}");
    }
    assert_eq!(receiving.take(&piece(VOTE, AT, 0)).await, Ok(true));
}

#[tokio::test]
async fn a_row_is_bounded() {
    let mut receiving = Receiving::default();
    let head = Piece::new(VOTE, 0, StateMachineId::System, AT);
    let mut number = 0;
    let error = loop {
        let row = (b"endless".to_vec(), vec![1; VALUE_BYTES_MAX]);
        let piece = head.with_contents(number, false, vec![row], Vec::new());
        match receiving.take(&piece).await {
            Ok(is_last) => assert!(!is_last && number < 9),
            Err(error) => break error,
        }
        number += 1;
    };
    let PieceError::Refused(error) = error else { panic!("{error:?}") };
    assert!(error.contains("a row of more than"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_goes_on_with_is_given_up() {
    let pieces = sent(0, parts(&rows(2, 900_000), 1, 0));
    let mut receiving = Receiving::default();
    assert_eq!(receiving.take(&pieces[0]).await, Ok(false));
    tokio::time::advance(IDLE_MAX * 2).await;
    receiving.assembler.drop_idle(Instant::now());
    assert_eq!(Arc::strong_count(&receiving.sink.0), 1, "its files are gone");
    assert!(receiving.take(&pieces[1]).await.is_err());
}
