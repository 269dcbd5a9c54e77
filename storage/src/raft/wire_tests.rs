//! What is written is read again; what was not written is an error.

use std::sync::Arc;

use proptest::prelude::*;
use shiioo_actors::command::{Command, Envelope, TenantCommand};
use shiioo_actors::ids::{Epoch, GroupId, Position};
use shiioo_actors::seams::Timestamp;

use super::convert;
use super::types::log_entry;
use super::wire::{
    Answer, Append, Appended, Ask, Ballot, Chunk, Request, Transfer, Transferred, Voted, decode,
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
        node,
        committed,
    })
}

fn members() -> impl Strategy<Value = Members> {
    prop::collection::vec(prop::collection::vec(0_u64..9, 0..4), 0..3)
        .prop_map(|voters| Members { nodes: voters.concat(), voters })
}

fn body() -> impl Strategy<Value = Body> {
    let command = (any::<u64>(), ".{0,80}").prop_map(|(at, text)| {
        let run = "10000000-0000-0000-0000-000000000000".parse().unwrap();
        let tenant = "00000000-0000-0000-0000-000000000001".parse().unwrap();
        let command = TenantCommand::CancelRun { run, reason: Some(text) };
        let command = Command::Tenant { tenant, epoch: Epoch(at), command };
        let at = Timestamp(0);
        let envelope = Envelope { version: 1, at, term: None, cause: None, origin: None, command };
        Body::Command(Arc::new(envelope))
    });
    prop_oneof![Just(Body::Blank), command, members().prop_map(Body::Members)]
}

fn rows() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    prop::collection::vec((bytes(), bytes()), 0..5)
}

fn ask() -> impl Strategy<Value = Ask> {
    let entries = prop::collection::vec((position(), body()), 0..5);
    let append = (vote(), prop::option::of(position()), prop::option::of(position()), entries)
        .prop_map(|(vote, prev, commit, entries)| {
            let entries = entries.into_iter().map(|(position, body)| LogEntry { position, body });
            Ask::Append(Append::new(GROUP, vote, prev, commit, entries, usize::MAX).0)
        });
    let ballot = || {
        (vote(), prop::option::of(position()), any::<bool>())
            .prop_map(|(vote, last, is_transfer)| Ballot { vote, last, is_transfer })
    };
    let transfer = (vote(), any::<u64>(), prop::option::of(position()))
        .prop_map(|(vote, to, last)| Ask::Transfer(Transfer { vote, to, last }));
    let membership = prop::option::of((position(), members()));
    let chunk = (vote(), position(), membership, prop::option::of(position()), rows()).prop_map(
        |(vote, upto, members, dumped, rows)| {
            Ask::Chunk(Chunk::empty(vote, 3, upto, members, dumped).with_rows(2, false, rows))
        },
    );
    prop_oneof![
        append,
        ballot().prop_map(Ask::Vote),
        ballot().prop_map(Ask::PreVote),
        transfer,
        Just(Ask::ReadIndex),
        chunk
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    let voted = (vote(), any::<bool>(), prop::option::of(position()))
        .prop_map(|(vote, is_granted, last)| Answer::Vote(Voted { vote, is_granted, last }));
    prop_oneof![
        prop_oneof![
            Just(Appended::Done),
            Just(Appended::Conflict),
            vote().prop_map(Appended::HigherVote)
        ]
        .prop_map(Answer::Append),
        voted,
        prop_oneof![
            Just(Transferred::Taken),
            vote().prop_map(Transferred::VoteChanged),
            prop::option::of(position()).prop_map(Transferred::NotFlushed)
        ]
        .prop_map(Answer::Transfer),
        prop::option::of(any::<u64>()).prop_map(Answer::ReadIndex),
        prop::option::of(vote()).prop_map(Answer::Chunk),
    ]
}

/// What a receiver does with bytes before anything of them reaches openraft.
fn look_at(bytes: &[u8]) {
    if let Ok(request) = decode::<Request>(bytes) {
        match request.body {
            Ask::Append(append) => drop(convert::append_from_wire(request.group, &append)),
            Ask::Chunk(chunk) => drop(chunk.check()),
            _ => {}
        }
    }
    drop(decode::<Answer>(bytes));
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
        prop_assert_eq!(decode::<Answer>(&encode(&answer)), Ok(answer));
    }

    #[test]
    fn a_ballot_keeps_its_meaning(vote in vote(), last in prop::option::of(position())) {
        let ballot = Ballot { vote, last, is_transfer: last.is_some() };
        prop_assert_eq!(convert::ballot_to_wire(&convert::ballot_from_wire(&ballot)), ballot);
    }

    #[test]
    fn any_bytes_are_an_error_and_no_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        is_versioned in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if is_versioned && !bytes.is_empty() {
            bytes[0] = super::wire::WIRE_VERSION;
        }
        look_at(&bytes);
    }

    #[test]
    fn damaged_requests_are_no_panic(ask in ask(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = encode(&Request { group: GROUP, body: ask });
        let at = at.index(bytes.len());
        bytes[at] = to;
        look_at(&bytes);
        bytes.truncate(at);
        prop_assert!(decode::<Request>(&bytes).is_err(), "cut off");
    }

    /// Entries as a leader sends them arrive; with one out of order, none does.
    #[test]
    fn entries_are_in_order_or_refused(
        bodies in prop::collection::vec(body(), 1..6),
        spoilt in prop::option::of((any::<prop::sample::Index>(), 2_u64..5)),
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
            entries[at].position.index += by;
        }
        let vote = Vote { term: 3, node: 1, committed: true };
        let (append, _) = Append::new(GROUP, vote, Some(prev), None, entries.clone(), usize::MAX);
        match convert::append_from_wire(GROUP, &append) {
            Ok(request) => {
                prop_assert!(is_fine);
                let found: Vec<_> = request.entries.into_iter().map(log_entry).collect();
                prop_assert_eq!(found.len(), entries.len());
            }
            Err(_) => prop_assert!(!is_fine),
        }
        prop_assert!(convert::append_from_wire(GroupId(8), &append).is_err());
    }
}

#[test]
fn a_message_holds_only_so_many_bytes_of_entries() {
    let text = "x".repeat(1 << 20);
    let run = "10000000-0000-0000-0000-000000000000".parse().unwrap();
    let tenant = "00000000-0000-0000-0000-000000000001".parse().unwrap();
    let command = TenantCommand::CancelRun { run, reason: Some(text) };
    let command = Command::Tenant { tenant, epoch: Epoch(1), command };
    let at = Timestamp(0);
    let envelope = Envelope { version: 1, at, term: None, cause: None, origin: None, command };
    let body = Body::Command(Arc::new(envelope));
    let entries =
        (0..9).map(|index| LogEntry { position: Position { term: 1, index }, body: body.clone() });
    let vote = Vote { term: 1, node: 1, committed: true };
    let (append, left_off_after) = Append::new(GROUP, vote, None, None, entries, 4 << 20);
    assert_eq!(left_off_after, Some(Position { term: 1, index: 2 }));
    assert_eq!(append.entries(GROUP).unwrap().len(), 3);
    assert!(encode(&append).len() < shiioo_actors::ports::PEER_MESSAGE_BYTES_MAX);
}
