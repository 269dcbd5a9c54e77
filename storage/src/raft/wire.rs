//! The messages between replicas of a group, and their encoding.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version: [`WIRE_VERSION`] |
//! | 4 | CRC-32 of what follows, little endian; from version 2 on |
//! | n | the message, as `shiioo_actors::domain::codec` writes it |
//!
//! A message is a [`Request`], answered by a [`Response`], or [`Heartbeats`], answered by
//! [`HeartbeatReplies`].
//!
//! An entry is encoded as the payload of its record in the log (`log::record`), so that both have
//! one encoding.
//!
//! Invariants:
//! - Bytes that are no message decode to an error, whatever they are.
//! - Values taken out of a message keep the rules that openraft asserts: entries follow on each
//!   other, and nothing in a leader's message is of a later term than its own.

use serde::de::{DeserializeOwned, Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shiioo_actors::domain::codec;
use shiioo_actors::domain::ids::{GroupId, Position, RaftId, StateMachineId};
use shiioo_actors::ports::{Held, Service, StateDigest};

use super::snapshot_wire::{Claim, NoRoom, Offer, Piece, RoomFor};
use crate::log::record::{self, LogEntry, Vote};

/// Version of the messages that this program writes. It reads the version before, too.
pub(crate) const WIRE_VERSION: u8 = 2;
/// The version without a checksum.
const WIRE_VERSION_WITHOUT_CHECKSUM: u8 = 1;
/// Bytes of a checksum. Connections have checksums of their own, but they do not cover the memory
/// on both sides: a bit that flips on one replica must not reach the log of another.
const CHECKSUM_BYTES: usize = 4;

/// Heartbeats in one message at most. None is longer than 80 bytes.
pub(crate) const HEARTBEATS_MAX: usize = 64;

/// A request about a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Request {
    pub group: GroupId,
    pub body: RequestBody,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum RequestBody {
    Append(Append),
    Vote(Ballot),
    PreVote(Ballot),
    Transfer(Transfer),
    /// Asks for the index that a linearizable read has to wait for.
    ReadIndex,
    Piece(Piece),
    LogReverted(LogReverted),
    Offer(Offer),
    Claim(Claim),
    /// A replica's request that the leader send it a state machine whose files are damaged there.
    Resend(StateMachineId),
    DigestAt(DigestAt),
    Differs(Differs),
    RoomFor(RoomFor),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Response {
    Append(AppendReply),
    Vote(VoteReply),
    Transfer(TransferReply),
    /// `None` when the node does not lead, or could not confirm that it does.
    ReadIndex(Option<u64>),
    /// `None` for a piece that was kept; the vote of the receiver when the snapshot is installed, or
    /// when a leader of a later term is known.
    Snapshot(Option<Vote>),
    /// Confirms a notice, or that there is room.
    Noted,
    /// How much of a state machine the receiver holds.
    Held(Held),
    /// What the receiver held of a state machine at a position; `None` when it cannot tell, or not yet.
    Digest(Option<StateDigest>),
    /// The receiver has no room for what is offered, or for the piece that came. It keeps nothing of it.
    NoRoom(NoRoom),
}

/// The heartbeats of several groups, from the node that leads them to one that has replicas of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Heartbeats(pub Vec<(GroupId, Append)>);

/// The answers to [`Heartbeats`], one for each in the same order. `None` of a group that has not
/// answered in time or is not there: to be asked alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct HeartbeatReplies(pub Vec<Option<AppendReply>>);

/// Entries of a leader. Without entries it is a heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Append {
    pub vote: Vote,
    pub prev: Option<Position>,
    pub commit: Option<Position>,
    entries: Vec<Blob>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum AppendReply {
    Done,
    Conflict,
    HigherVote(Vote),
}

/// A candidate's request for a vote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ballot {
    pub vote: Vote,
    pub last: Option<Position>,
    pub is_transfer: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct VoteReply {
    pub vote: Vote,
    pub is_granted: bool,
    pub last: Option<Position>,
}

/// A leader's request that `to` lead from now on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Transfer {
    pub vote: Vote,
    pub to: RaftId,
    pub last: Option<Position>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum TransferReply {
    Taken,
    VoteChanged(Vote),
    NotFlushed(Option<Position>),
}

/// A leader's notice that a replica lacks an entry that it has acknowledged to this very leader.
/// Its log is an older copy, or its disk lost bytes that it had called durable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LogReverted {
    pub vote: Vote,
    pub acknowledged: Position,
}

/// A leader's question what a replica held of a state machine at a position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DigestAt {
    pub part: StateMachineId,
    pub at: Position,
}

/// A leader's notice that what a replica held of a state machine is not what two others held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Differs {
    pub vote: Vote,
    pub part: StateMachineId,
    pub at: Position,
    /// What the replica answered.
    pub digest: StateDigest,
}

impl RequestBody {
    /// Gives the service that carries it: what belongs to snapshots has a lane of its own.
    pub fn service(&self) -> Service {
        match self {
            Self::Offer(_)
            | Self::RoomFor(_)
            | Self::Piece(_)
            | Self::Claim(_)
            | Self::Resend(_)
            | Self::DigestAt(_)
            | Self::Differs(_) => Service::Snapshot,
            _ => Service::Raft,
        }
    }
}

impl Heartbeats {
    /// Checks that a leader can have sent this.
    pub fn check(&self) -> Result<(), String> {
        let Self(beats) = self;
        if beats.len() > HEARTBEATS_MAX {
            return Err(format!(
                "{} heartbeats in one message, at most {HEARTBEATS_MAX} may be",
                beats.len()
            ));
        }
        if beats.iter().all(|(_, append)| append.is_heartbeat()) {
            return Ok(());
        }
        Err("entries among heartbeats".into())
    }
}

impl Append {
    /// Makes a message of as many entries as `bytes_max` allows, and at least one where there is
    /// one: an entry that is larger by itself travels alone. Gives the last one taken, if not all
    /// were.
    pub fn new(
        group: GroupId,
        vote: Vote,
        prev: Option<Position>,
        commit: Option<Position>,
        entries: impl IntoIterator<Item = LogEntry>,
        bytes_max: usize,
    ) -> (Self, Option<Position>) {
        let mut taken = Vec::new();
        let (mut bytes, mut last) = (0, None);
        let mut left_off = None;
        for entry in entries {
            let mut blob = Vec::new();
            record::put_entry(group, &entry, &mut blob);
            bytes += blob.len();
            if bytes > bytes_max && !taken.is_empty() {
                left_off = last;
                break;
            }
            last = Some(entry.position);
            taken.push(Blob(blob));
        }
        (Self { vote, prev, commit, entries: taken }, left_off)
    }

    pub fn is_heartbeat(&self) -> bool {
        self.entries.is_empty()
    }

    /// Counts the bytes of the entries.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.0.len()).sum()
    }

    /// Gives the entries, after checking that a leader can have sent them: openraft asserts what is
    /// checked here, and a member's faulty message must not end this process.
    pub fn entries(&self, group: GroupId) -> Result<Vec<LogEntry>, String> {
        let term = self.vote.term;
        if !self.vote.committed {
            return Err("entries of a node that does not lead".into());
        }
        if self.prev.max(self.commit).is_some_and(|position| position.term > term) {
            return Err(format!("positions of a later term than {term}"));
        }
        let mut prev = self.prev;
        let mut entries = Vec::with_capacity(self.entries.len());
        for blob in &self.entries {
            let (of, entry) = record::decode_entry(&blob.0)?;
            let at = entry.position;
            let follows = match prev {
                Some(prev) => prev.index.checked_add(1) == Some(at.index) && at.term >= prev.term,
                None => at.index == 0,
            };
            // The group stands in each entry, too: an entry of another group is a fault of the
            // sender's.
            if of != group || !follows || at.term > term {
                return Err(format!("entry {at} of group {of} cannot follow {prev:?} here"));
            }
            if let record::Body::Members(members) = &entry.body {
                members.check()?;
            }
            prev = Some(at);
            entries.push(entry);
        }
        Ok(entries)
    }
}

/// Bytes, encoded as such and not one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob(pub(super) Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Blob;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }

            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// Writes a request or an answer.
pub(crate) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = vec![WIRE_VERSION];
    bytes.extend_from_slice(&[0; CHECKSUM_BYTES]);
    codec::encode_into(message, &mut bytes);
    let (head, message) = bytes.split_at_mut(1 + CHECKSUM_BYTES);
    head[1..].copy_from_slice(&crc32fast::hash(message).to_le_bytes());
    bytes
}

/// Reads a request or an answer.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let message = match bytes.split_first() {
        Some((&WIRE_VERSION, checked)) => {
            let (checksum, message) = checked.split_first_chunk().ok_or("a message cut off")?;
            if crc32fast::hash(message) != u32::from_le_bytes(*checksum) {
                return Err("the checksum of a message does not match".into());
            }
            message
        }
        Some((&WIRE_VERSION_WITHOUT_CHECKSUM, message)) => message,
        Some((version, _)) => return Err(format!("a message of version {version}")),
        None => return Err("an empty message".into()),
    };
    codec::decode(message).map_err(|error| error.to_string())
}
