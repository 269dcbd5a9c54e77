//! The messages by which a snapshot is sent; the protocol is told in [`snapshot`](super::snapshot).

use serde::{Deserialize, Serialize};
use shiioo_actors::domain::ids::{Position, StateMachineId};
use shiioo_actors::ports::Found;

use super::wire::Blob;
use crate::log::record::{Members, Vote};

/// A leader's question how much a replica holds of a state machine, which it is about to send.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Offer {
    pub vote: Vote,
    pub part: StateMachineId,
}

/// A leader's question whether a replica has room for what the leader is about to send of a state machine. A member
/// of the version before does not know it, and declines: it is sent everything without being asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RoomFor {
    pub vote: Vote,
    pub part: StateMachineId,
    /// Bytes that it takes on the receiver's disk until it is in its place, about.
    pub bytes: u64,
}

/// How many bytes a receiver has for copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NoRoom {
    pub free: u64,
}

/// Some of what a state machine holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub vote: Vote,
    /// Number that tells transfers of one leader in one term apart.
    pub transfer: u64,
    pub part: StateMachineId,
    /// Number of the piece, from 0.
    pub number: u32,
    pub is_last: bool,
    /// Last position that the state machine holds.
    pub position: Position,
    /// Where its events begin that travel: those before the receiver has.
    pub events_from: u64,
    rows: Vec<(Blob, Blob)>,
    events: Blob,
}

/// A leader's claim that everything of the group up to a position has been sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub vote: Vote,
    pub upto: Position,
    pub members: Option<(Position, Members)>,
    /// The state machines that there are. What the receiver has beside them was deleted.
    pub parts: Vec<StateMachineId>,
}

impl Piece {
    /// Counts the bytes of rows and events in it.
    pub fn bytes(&self) -> u64 {
        let rows = self.rows.iter().map(|(key, value)| key.0.len() + value.0.len());
        (rows.sum::<usize>() + self.events.0.len()) as u64
    }

    pub fn new(vote: Vote, transfer: u64, part: StateMachineId, position: Position) -> Self {
        let (rows, events) = (Vec::new(), Blob(Vec::new()));
        let (number, is_last, events_from) = (0, true, 0);
        Self { vote, transfer, part, number, is_last, position, events_from, rows, events }
    }

    pub fn with_contents(
        &self,
        number: u32,
        is_last: bool,
        rows: Vec<Found>,
        events: Vec<u8>,
    ) -> Self {
        let rows = rows.into_iter().map(|(key, value)| (Blob(key), Blob(value))).collect();
        Self { number, is_last, rows, events: Blob(events), ..*self }
    }

    pub fn into_contents(self) -> (Vec<Found>, Vec<u8>) {
        let rows = self.rows.into_iter().map(|(key, value)| (key.0, value.0)).collect();
        (rows, self.events.0)
    }

    /// Checks that a leader can have sent this.
    pub fn check(&self) -> Result<(), String> {
        if !self.vote.committed || self.position.term > self.vote.term {
            return Err("a piece of a snapshot that its sender cannot have".into());
        }
        Ok(())
    }
}

impl Claim {
    /// Checks that a leader can have sent this.
    pub fn check(&self) -> Result<(), String> {
        if !self.vote.committed || self.upto.term > self.vote.term {
            return Err("a snapshot that its sender cannot have".into());
        }
        let members = self.members.as_ref();
        if members.is_some_and(|(at, _)| *at > self.upto) {
            return Err("a snapshot with a membership from beyond it".into());
        }
        members.map_or(Ok(()), |(_, members)| members.check())
    }
}
