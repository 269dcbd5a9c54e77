//! What is written is read again; what was not written is an error.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use shiioo_actors::command::{CancelRun, Command, Envelope, TenantCommand};
use shiioo_actors::domain::ids::{Epoch, GroupId, Position, RaftId, StateMachineId};
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::ports::{Held, StateDigest};

use super::convert;
use super::snapshot_wire::{Claim, NoRoom, Offer, Piece, RoomFor};
use super::types::log_entry;
use super::wire::{
    Append, AppendReply, Ballot, Differs, DigestAt, HEARTBEATS_MAX, HeartbeatReplies, Heartbeats,
    LogReverted, Request, RequestBody, Response, Transfer, TransferReply, VoteReply, decode,
    encode,
};
use crate::log::record::{Body, LogEntry, Members, Vote};

const GROUP: GroupId = GroupId(7);

fn position() -> impl Strategy<Value = Position> {
    (0_u64..1000, 0_u64..1_000_000).prop_map(|(term, index)| Position { term, index })
}

fn vote() -> impl Strategy<Value = Vote> {
    (0_u64..2000, any::<u64>(), any::<bool>()).prop_map(|(term, node, committed)| Vote {
        term,
        node: RaftId(node),
        committed,
    })
}

fn members() -> impl Strategy<Value = Members> {
    // In order, as sets are written.
    prop::collection::vec(prop::collection::btree_set(0_u64..9, 0..4), 0..3).prop_map(|voters| {
        let nodes = voters.iter().flatten().copied().collect::<BTreeSet<_>>();
        let voters = voters.into_iter().map(|set| set.into_iter().map(RaftId).collect()).collect();
        Members { voters, nodes: nodes.into_iter().map(RaftId).collect() }
    })
}

fn body() -> impl Strategy<Value = Body> {
    let command = (any::<u64>(), ".{0,80}").prop_map(|(at, text)| {
        let run = "10000000-0000-0000-0000-000000000000".parse().unwrap();
        let tenant = "00000000-0000-0000-0000-000000000001".parse().unwrap();
        let command = TenantCommand::CancelRun(CancelRun { run, reason: Some(text) });
        let command = Command::Tenant { tenant, epoch: Epoch(at), command };
        let at = Timestamp(0);
        let envelope = Envelope { version: 1, at, term: None, cause: None, rpc_id: None, command };
        Body::Command(Arc::new(envelope))
    });
    prop_oneof![Just(Body::Blank), command, members().prop_map(Body::Members)]
}

fn rows() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    prop::collection::vec((bytes(), bytes()), 0..5)
}

fn ask() -> impl Strategy<Value = RequestBody> {
    let entries = prop::collection::vec((position(), body()), 0..5);
    let append = (vote(), prop::option::of(position()), prop::option::of(position()), entries)
        .prop_map(|(vote, prev, commit, entries)| {
            let entries = entries.into_iter().map(|(position, body)| LogEntry { position, body });
            RequestBody::Append(Append::new(GROUP, vote, prev, commit, entries, usize::MAX).0)
        });
    let ballot = || {
        (vote(), prop::option::of(position()), any::<bool>())
            .prop_map(|(vote, last, is_transfer)| Ballot { vote, last, is_transfer })
    };
    let transfer =
        (vote(), any::<u64>(), prop::option::of(position())).prop_map(|(vote, to, last)| {
            RequestBody::Transfer(Transfer { vote, to: RaftId(to), last })
        });
    let membership = prop::option::of((position(), members()));
    let events = prop::collection::vec(any::<u8>(), 0..40);
    let piece = (vote(), position(), rows(), events).prop_map(|(vote, position, rows, events)| {
        let piece = Piece::new(vote, 3, StateMachineId::System, position);
        RequestBody::Piece(piece.with_contents(2, false, rows, events))
    });
    let claim = (vote(), position(), membership).prop_map(|(vote, upto, members)| {
        let parts = vec![StateMachineId::System];
        RequestBody::Claim(Claim { vote, upto, members, parts })
    });
    let offer =
        vote().prop_map(|vote| RequestBody::Offer(Offer { vote, part: StateMachineId::System }));
    let room = (vote(), any::<u64>()).prop_map(|(vote, bytes)| {
        RequestBody::RoomFor(RoomFor { vote, part: StateMachineId::System, bytes })
    });
    let reverted = (vote(), position()).prop_map(|(vote, acknowledged)| {
        RequestBody::LogReverted(LogReverted { vote, acknowledged })
    });
    let (part, digest) = (StateMachineId::System, any::<[u8; 32]>().prop_map(StateDigest));
    let differs = (vote(), position(), digest).prop_map(move |(vote, at, digest)| {
        RequestBody::Differs(Differs { vote, part, at, digest })
    });
    prop_oneof![
        append,
        reverted,
        position().prop_map(move |at| RequestBody::DigestAt(DigestAt { part, at })),
        differs,
        Just(RequestBody::Resend(part)),
        ballot().prop_map(RequestBody::Vote),
        ballot().prop_map(RequestBody::PreVote),
        transfer,
        Just(RequestBody::ReadIndex),
        piece,
        claim,
        offer,
        room
    ]
}

fn answer() -> impl Strategy<Value = Response> {
    let voted = (vote(), any::<bool>(), prop::option::of(position()))
        .prop_map(|(vote, is_granted, last)| Response::Vote(VoteReply { vote, is_granted, last }));
    prop_oneof![
        prop_oneof![
            Just(AppendReply::Done),
            Just(AppendReply::Conflict),
            vote().prop_map(AppendReply::HigherVote)
        ]
        .prop_map(Response::Append),
        voted,
        prop_oneof![
            Just(TransferReply::Taken),
            vote().prop_map(TransferReply::VoteChanged),
            prop::option::of(position()).prop_map(TransferReply::NotFlushed)
        ]
        .prop_map(Response::Transfer),
        prop::option::of(any::<u64>()).prop_map(Response::ReadIndex),
        prop::option::of(vote()).prop_map(Response::Snapshot),
        (prop::option::of(position()), any::<u64>())
            .prop_map(|(position, events)| Response::Held(Held { position, events })),
        prop::option::of(any::<[u8; 32]>())
            .prop_map(|digest| Response::Digest(digest.map(StateDigest))),
        any::<u64>().prop_map(|free| Response::NoRoom(NoRoom { free })),
    ]
}

fn heartbeat() -> impl Strategy<Value = (GroupId, Append)> {
    let position = || prop::option::of(position());
    (any::<u32>(), vote(), position(), position()).prop_map(|(group, vote, prev, commit)| {
        (GroupId(group), Append::new(GroupId(group), vote, prev, commit, [], usize::MAX).0)
    })
}

/// What a receiver does with bytes before anything of them reaches openraft. Whether it takes them
/// for a message.
fn look_at(bytes: &[u8]) -> bool {
    let request = decode::<Request>(bytes);
    let is_message = request.is_ok() || decode::<Response>(bytes).is_ok();
    if let Ok(request) = request {
        match request.body {
            RequestBody::Append(append) => drop(convert::append_from_wire(request.group, &append)),
            RequestBody::Piece(piece) => drop(piece.check()),
            RequestBody::Claim(claim) => drop(claim.check()),
            _ => {}
        }
    }
    is_message
}

/// As the version before wrote it: without a checksum.
fn bare<T: serde::Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = vec![1];
    shiioo_actors::domain::codec::encode_into(message, &mut bytes);
    bytes
}

/// What is wrong with one entry.
#[derive(Debug, Clone)]
enum Spoilt {
    Index(u64),
    /// Of a later term than its leader's.
    Later,
    /// Of an earlier term than the entry before.
    Earlier,
}

fn spoiling() -> impl Strategy<Value = Spoilt> {
    prop_oneof![(2_u64..5).prop_map(Spoilt::Index), Just(Spoilt::Later), Just(Spoilt::Earlier)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn requests_come_back(ask in ask()) {
        let request = Request { group: GROUP, body: ask };
        prop_assert_eq!(decode::<Request>(&encode(&request)), Ok(request));
    }

    #[test]
    fn answers_come_back(answer in answer()) {
        prop_assert_eq!(decode::<Response>(&encode(&answer)), Ok(answer));
    }

    #[test]
    fn heartbeats_and_their_answers_come_back(
        beats in prop::collection::vec(heartbeat(), 0..5),
        replies in prop::collection::vec(prop::option::of(vote()), 0..5),
    ) {
        let beats = Heartbeats(beats);
        prop_assert_eq!(decode::<Heartbeats>(&encode(&beats)), Ok(beats));
        let replies = replies.into_iter().map(|vote| vote.map(AppendReply::HigherVote)).collect();
        let replies = HeartbeatReplies(replies);
        prop_assert_eq!(decode::<HeartbeatReplies>(&encode(&replies)), Ok(replies));
    }

    #[test]
    fn a_ballot_keeps_its_meaning(vote in vote(), last in prop::option::of(position())) {
        let ballot = Ballot { vote, last, is_transfer: last.is_some() };
        prop_assert_eq!(convert::ballot_to_wire(&convert::ballot_from_wire(&ballot)), ballot);
    }

    #[test]
    fn any_bytes_are_an_error_and_no_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = bytes;
        let is_bare = bytes.first() == Some(&1);
        prop_assert!(is_bare || !look_at(&bytes), "they have no checksum");
        if !bytes.is_empty() {
            bytes[0] = super::wire::WIRE_VERSION;
            prop_assert!(!look_at(&bytes), "they have no right checksum");
            // Without one, any bytes may be a message, and none ends the receiver.
            bytes[0] = 1;
            look_at(&bytes);
        }
    }

    #[test]
    fn messages_of_the_version_before_are_read(ask in ask(), answer in answer()) {
        let request = Request { group: GROUP, body: ask };
        prop_assert_eq!(decode::<Request>(&bare(&request)), Ok(request));
        prop_assert_eq!(decode::<Response>(&bare(&answer)), Ok(answer));
    }

    #[test]
    fn a_later_version_is_no_message(ask in ask(), version in 3_u8..) {
        let mut bytes = encode(&Request { group: GROUP, body: ask.clone() });
        bytes[0] = version;
        prop_assert!(decode::<Request>(&bytes).is_err());
        let mut bytes = bare(&Request { group: GROUP, body: ask });
        bytes[0] = version;
        prop_assert!(decode::<Request>(&bytes).is_err());
    }

    /// Of snapshots' chunks as of everything else: what a bit was flipped in is no message.
    #[test]
    fn any_flipped_bit_is_noticed(ask in ask()) {
        let bytes = encode(&Request { group: GROUP, body: ask });
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // One bit away from this version is 0, 3, 6, ...: none that is read.
            prop_assert!(!look_at(&flipped), "bit {}", bit);
        }
    }

    #[test]
    fn damaged_requests_are_no_panic(ask in ask(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = encode(&Request { group: GROUP, body: ask });
        let at = at.index(bytes.len());
        let mut damaged = bare(&decode::<Request>(&bytes).unwrap());
        let place = at % damaged.len();
        damaged[place] = to;
        look_at(&damaged);
        bytes.truncate(at);
        prop_assert!(decode::<Request>(&bytes).is_err(), "cut off");
    }

    /// Entries as a leader sends them arrive; with one out of order, none does.
    #[test]
    fn entries_are_in_order_or_refused(
        bodies in prop::collection::vec(body(), 1..6),
        spoilt in prop::option::of((any::<prop::sample::Index>(), spoiling())),
    ) {
        let prev = Position { term: 2, index: 9 };
        let is_valid = |body: &Body| !matches!(body, Body::Members(m) if m.check().is_err());
        let is_fine = bodies.iter().all(is_valid) && spoilt.is_none();
        let mut entries: Vec<_> = bodies
            .into_iter()
            .zip(10..)
            .map(|(body, index)| LogEntry { position: Position { term: 3, index }, body })
            .collect();
        if let Some((at, by)) = spoilt {
            let at = at.index(entries.len());
            let position = &mut entries[at].position;
            match by {
                Spoilt::Index(by) => position.index += by,
                Spoilt::Later => position.term = 4,
                Spoilt::Earlier => position.term = 1,
            }
        }
        let vote = Vote { term: 3, node: RaftId(1), committed: true };
        let (append, _) = Append::new(GROUP, vote, Some(prev), None, entries.clone(), usize::MAX);
        match convert::append_from_wire(GROUP, &append) {
            Ok(request) => {
                prop_assert!(is_fine);
                let found: Vec<_> = request.entries.into_iter().map(log_entry).collect();
                prop_assert_eq!(found, entries);
            }
            Err(_) => prop_assert!(!is_fine),
        }
        prop_assert!(convert::append_from_wire(GroupId(8), &append).is_err());
    }
}

#[test]
fn heartbeats_have_these_bytes() {
    let vote = Vote { term: 3, node: RaftId(1), committed: true };
    let prev = Some(Position { term: 3, index: 9 });
    let beat = Append::new(GROUP, vote, prev, None, [], usize::MAX).0;
    let bytes = encode(&Heartbeats(vec![(GROUP, beat)]));
    assert_eq!(bytes, [2, 162, 12, 137, 171, 1, 7, 3, 1, 1, 1, 3, 9, 0, 0]);
    let replies = [Some(AppendReply::Done), None, Some(AppendReply::HigherVote(vote))];
    assert_eq!(
        encode(&HeartbeatReplies(replies.into())),
        [2, 64, 118, 29, 232, 3, 1, 0, 0, 1, 2, 3, 1, 1]
    );
}

#[test]
fn heartbeats_with_entries_or_too_many_are_refused() {
    let vote = Vote { term: 3, node: RaftId(1), committed: true };
    let append = |entries: Vec<LogEntry>| Append::new(GROUP, vote, None, None, entries, 9).0;
    let of = |append: Append, count| Heartbeats(vec![(GROUP, append); count]).check();
    assert_eq!(of(append(vec![]), HEARTBEATS_MAX), Ok(()));
    assert!(of(append(vec![]), HEARTBEATS_MAX + 1).is_err());
    let entry = LogEntry { position: Position { term: 3, index: 0 }, body: Body::Blank };
    assert!(of(append(vec![entry]), 1).is_err());
    let largest = Vote { term: u64::MAX, node: RaftId(u64::MAX), committed: true };
    let at = Some(Position { term: u64::MAX, index: u64::MAX });
    let group = GroupId(u32::MAX);
    let largest = Append::new(group, largest, at, at, [], 0).0;
    assert!(
        encode(&Heartbeats(vec![(group, largest); HEARTBEATS_MAX])).len() < 80 * HEARTBEATS_MAX
    );
}

#[test]
fn a_message_holds_only_so_many_bytes_of_entries() {
    let text = "x".repeat(1 << 20);
    let run = "10000000-0000-0000-0000-000000000000".parse().unwrap();
    let tenant = "00000000-0000-0000-0000-000000000001".parse().unwrap();
    let command = TenantCommand::CancelRun(CancelRun { run, reason: Some(text) });
    let command = Command::Tenant { tenant, epoch: Epoch(1), command };
    let at = Timestamp(0);
    let envelope = Envelope { version: 1, at, term: None, cause: None, rpc_id: None, command };
    let body = Body::Command(Arc::new(envelope));
    let entries =
        (0..9).map(|index| LogEntry { position: Position { term: 1, index }, body: body.clone() });
    let vote = Vote { term: 1, node: RaftId(1), committed: true };
    let (append, left_off_after) = Append::new(GROUP, vote, None, None, entries, 4 << 20);
    assert_eq!(left_off_after, Some(Position { term: 1, index: 2 }));
    assert_eq!(append.entries(GROUP).unwrap().len(), 3);
    assert!(encode(&append).len() < shiioo_actors::ports::PEER_MESSAGE_BYTES_MAX);
}

#[test]
fn a_claim_with_a_membership_from_beyond_it_is_refused() {
    let vote = Vote { term: 3, node: RaftId(1), committed: true };
    let upto = Position { term: 3, index: 9 };
    let members = Members { voters: vec![vec![RaftId(1)]], nodes: vec![RaftId(1)] };
    let claim = |at| Claim {
        vote,
        upto,
        members: Some((at, members.clone())),
        parts: vec![StateMachineId::System],
    };
    assert_eq!(claim(upto).check(), Ok(()));
    assert!(claim(Position { term: 3, index: 10 }).check().is_err());
    let nobody = Members { voters: vec![vec![]], nodes: vec![] };
    assert!(Claim { members: Some((upto, nobody)), ..claim(upto) }.check().is_err());
    assert!(Claim { upto: Position { term: 4, index: 1 }, ..claim(upto) }.check().is_err());
    let undecided = Vote { committed: false, ..vote };
    assert!(Claim { vote: undecided, ..claim(upto) }.check().is_err());
}

#[test]
fn an_entry_of_a_later_version_is_refused_and_named() {
    let run = "10000000-0000-0000-0000-000000000000".parse().unwrap();
    let tenant = "00000000-0000-0000-0000-000000000001".parse().unwrap();
    let command = TenantCommand::CancelRun(CancelRun { run, reason: None });
    let command = Command::Tenant { tenant, epoch: Epoch(1), command };
    let envelope = |version| {
        let (at, command) = (Timestamp(0), command.clone());
        let envelope = Envelope { version, at, term: None, cause: None, rpc_id: None, command };
        Body::Command(Arc::new(envelope))
    };
    let vote = Vote { term: 1, node: RaftId(1), committed: true };
    let append = |version| {
        let position = Position { term: 1, index: 0 };
        let entry = LogEntry { position, body: envelope(version) };
        Append::new(GROUP, vote, None, None, [entry], usize::MAX).0.entries(GROUP)
    };
    assert!(append(shiioo_actors::command::COMMAND_VERSION).is_ok());
    let error = append(shiioo_actors::command::COMMAND_VERSION + 1).unwrap_err();
    assert!(error.contains("newer shiioo"), "{error}");
}
