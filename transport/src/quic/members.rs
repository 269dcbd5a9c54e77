//! The members as the log has them: who may call, who may be called, and over which connections.
//!
//! - One table under one lock, held for a few comparisons and never across an await. Whether a
//!   connection is taken is decided under it: who leaves at that moment is either refused or has
//!   its connection closed, never forgotten.
//! - A member is its raft id *and* its node id; a certificate for only one of them is nobody's.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use quinn::{Connection, VarInt};
use shiioo_actors::ports::{Lane, Peer, PeerError};
use tokio::sync::{Semaphore, SemaphorePermit, watch};

use super::link::{Closable, Link};
use crate::pki::MemberName;

/// Code of a connection that is closed because the other end is no member, or no more.
pub(super) const NOT_A_MEMBER: VarInt = VarInt::from_u32(1);
/// What it is told.
pub(super) const NOT_A_MEMBER_TEXT: &[u8] = b"not a member";
/// Code of a connection in whose place a newer one stands.
const REPLACED: VarInt = VarInt::from_u32(2);
/// Connections that one member may hold to this node: its own, and one that it has given up
/// without our knowing.
const FROM_MEMBER_MAX: usize = 2;

/// Calls under way to one member, in the control lane: votes, heartbeats and small entries of every
/// group are among them.
pub(super) const CONTROL_CALLS_MAX: usize = 512;
/// Calls under way to one member, in the raft lane: long polls of clients are among them.
const RAFT_CALLS_MAX: usize = 2_048;
/// Calls under way to one member, in the bulk lane: with a stream's window each, a quarter of
/// their connection's.
pub(super) const BULK_CALLS_MAX: usize = 16;

/// The members, this node left out.
#[derive(Debug, Default)]
pub(super) struct Members(Mutex<BTreeMap<u64, Seat>>);

#[derive(Debug)]
struct Seat {
    member: Arc<Member>,
    /// Connections that it made to this node, oldest first.
    from: Vec<Connection>,
}

/// One other member.
#[derive(Debug)]
pub(super) struct Member {
    pub peer: Peer,
    pub link: watch::Sender<Link<Connection>>,
    /// Where it last called from: its socket is the one it listens at.
    seen: Mutex<Option<SocketAddr>>,
    /// Attempts that tried a hint.
    hinted: AtomicUsize,
    control: Semaphore,
    raft: Semaphore,
    bulk: Semaphore,
}

impl Members {
    /// Makes these the members. Connections that are nobody's any more are closed.
    pub fn set(&self, own: u64, peers: Vec<Peer>) {
        let mut seats = self.seats();
        let mut old = std::mem::take(&mut *seats);
        for peer in peers.into_iter().filter(|peer| peer.raft_id != own) {
            let raft_id = peer.raft_id;
            let seat = match old.remove(&raft_id) {
                Some(seat) if seat.member.peer == peer => seat,
                // The same node at another address: what it dialled is still its own.
                Some(Seat { member, from }) if member.peer.node == peer.node => {
                    member.leave();
                    Seat { member: Member::new(peer), from }
                }
                other => {
                    other.into_iter().for_each(Seat::clear);
                    Seat { member: Member::new(peer), from: Vec::new() }
                }
            };
            seats.insert(raft_id, seat);
        }
        old.into_values().for_each(Seat::clear);
    }

    /// The member with this raft id.
    pub fn get(&self, raft_id: u64) -> Option<Arc<Member>> {
        self.seats().get(&raft_id).map(|seat| Arc::clone(&seat.member))
    }

    /// Takes a connection that was made by whom `name` names; `false` when that is no member.
    pub fn take(&self, name: &MemberName, connection: &Connection) -> bool {
        let mut seats = self.seats();
        let seat = seats.get_mut(&name.raft_id).filter(|seat| seat.member.peer.node == name.node);
        let Some(seat) = seat else { return false };
        seat.from.push(connection.clone());
        if seat.from.len() > FROM_MEMBER_MAX {
            seat.from.remove(0).close(REPLACED, b"a newer connection is there");
        }
        *seat.member.seen.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(connection.remote_address());
        seat.member.link.send_modify(Link::forgive);
        true
    }

    /// Forgets a connection that is over.
    pub fn forget(&self, name: &MemberName, connection: &Connection) {
        if let Some(seat) = self.seats().get_mut(&name.raft_id) {
            seat.from.retain(|other| other.stable_id() != connection.stable_id());
            // Where another process with its certificate was, nobody is any more.
            if let Some(last) = seat.from.last() {
                *seat.member.seen.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(last.remote_address());
            }
        }
    }

    /// Whether a member was last at this address, or is known to be there.
    pub fn is_home(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.seats().values().any(|seat| seat.member.is_at(address))
    }

    fn seats(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Seat>> {
        // Nothing that panics happens under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    fn clear(self) {
        self.member.leave();
        self.from.iter().for_each(turn_away);
    }
}

impl Member {
    fn new(peer: Peer) -> Arc<Self> {
        Arc::new(Self {
            peer,
            link: watch::Sender::new(Link::new()),
            seen: Mutex::default(),
            hinted: AtomicUsize::new(0),
            control: Semaphore::new(CONTROL_CALLS_MAX),
            raft: Semaphore::new(RAFT_CALLS_MAX),
            bulk: Semaphore::new(BULK_CALLS_MAX),
        })
    }

    /// Where it last called from, when that is not the address it is known by: it has started again
    /// elsewhere, and nobody may be left to say so.
    pub fn moved_to(&self) -> Option<SocketAddr> {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.filter(|seen| seen.to_string() != self.peer.addr)
    }

    fn is_at(&self, address: IpAddr) -> bool {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.peer.addr.parse::<SocketAddr>().ok();
        // An address in words is known once it has been dialled.
        let dialled = self.link.borrow().connection().map(Connection::remote_address);
        [seen, known, dialled].into_iter().flatten().any(|at| at.ip().to_canonical() == address)
    }

    /// The address beside the known one that is tried with the next attempt: each in turn.
    pub fn next_hint<'a>(&self, hints: &'a [String]) -> Option<&'a str> {
        let turn = self.hinted.fetch_add(1, Ordering::Relaxed);
        let hint = hints.get(turn.checked_rem(hints.len())?)?;
        (*hint != self.peer.addr).then_some(hint)
    }

    /// A place among the calls under way in this lane.
    pub fn place(&self, lane: Lane) -> Result<SemaphorePermit<'_>, PeerError> {
        let places = match lane {
            Lane::Control => &self.control,
            Lane::Raft => &self.raft,
            Lane::Bulk => &self.bulk,
        };
        places.try_acquire().map_err(|_| self.unreachable("too many calls under way"))
    }

    /// A call that did not reach it.
    pub fn unreachable(&self, why: impl Into<String>) -> PeerError {
        PeerError::Unreachable { to: self.peer.raft_id, why: why.into() }
    }

    fn leave(&self) {
        let mut connection = None;
        self.link.send_modify(|link| connection = link.leave());
        connection.iter().for_each(turn_away);
    }
}

/// Closes a connection whose other end is no member.
pub(super) fn turn_away(connection: &Connection) {
    connection.close(NOT_A_MEMBER, NOT_A_MEMBER_TEXT);
}

impl Closable for Connection {
    fn closed(&self) -> Option<String> {
        self.close_reason().map(|reason| reason.to_string())
    }
}
