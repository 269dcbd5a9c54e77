//! The table of members as the log has them: who may call, who may be called, over which
//! connections.
//!
//! - One lock guards the table; it is held for a few comparisons and never across an await.
//!   Accepting a connection and removing a member both happen under it: a connection of a member
//!   that is removed at that moment is either refused or closed, never kept.
//! - A member is identified by its raft id *and* its node id: a certificate with only one of them
//!   right is not a member's.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use quinn::{Connection, ConnectionError, VarInt};
use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::ports::{Lane, PEER_HTTP_STREAMS_MAX, Peer, PeerError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use uuid::Uuid;

use super::link::{Closable, Link};
use crate::pki::MemberName;

/// Code of a connection that is closed because the other end is not, or no longer, a member.
const NOT_A_MEMBER: VarInt = VarInt::from_u32(1);
/// Reason that goes with the code.
const NOT_A_MEMBER_TEXT: &[u8] = b"not a member";
/// Code of a connection that is closed because the other end was a member and was removed.
const REMOVED: VarInt = VarInt::from_u32(6);
/// Reason that goes with the code.
const REMOVED_TEXT: &[u8] = b"removed from the cluster";
/// Code of a connection that a newer one of the same member replaces.
const REPLACED: VarInt = VarInt::from_u32(2);
/// Code of a connection that is closed because the other end belongs to the cluster from which this
/// one was recovered by force. The reason tells what to do.
const RECOVERED: VarInt = VarInt::from_u32(5);
/// Accepted connections of one member: its current one, and one that it has given up without this
/// node's noticing.
const ACCEPTED_MAX: usize = 2;

/// Calls in progress to one member in the control lane: votes, heartbeats and small entries of every
/// group.
pub(in crate::quic) const CONTROL_CALLS_MAX: usize = 512;
/// Calls in progress to one member in the raft lane.
pub(in crate::quic) const RAFT_CALLS_MAX: usize = 1_024;
/// Calls in progress to one member in the bulk lane: with a stream's window each, a quarter of
/// their connection's window.
pub(in crate::quic) const BULK_CALLS_MAX: usize = 16;

/// Holds the members by raft id, without this node.
#[derive(Debug, Default)]
pub(in crate::quic) struct Members {
    entries: Mutex<BTreeMap<RaftId, MemberEntry>>,
    /// The last id that was given to a member, as far as this node knows.
    last_given: AtomicU64,
}

#[derive(Debug)]
struct MemberEntry {
    member: Arc<Member>,
    /// Connections that the member dialled to this node, oldest first.
    accepted: Vec<Connection>,
}

/// Describes one other member and the connection to it.
#[derive(Debug)]
pub(in crate::quic) struct Member {
    pub peer: Peer,
    pub(super) link: watch::Sender<Link<Connection>>,
    /// Address that the member last called from. A node dials from the socket at which it listens.
    seen: Mutex<Option<SocketAddr>>,
    /// Number of attempts that tried a hint.
    hinted: AtomicUsize,
    control: Arc<Semaphore>,
    raft: Arc<Semaphore>,
    http: Arc<Semaphore>,
    bulk: Arc<Semaphore>,
}

impl Members {
    /// Replaces the members. Closes the connections of those that are removed.
    pub fn set(&self, own: RaftId, peers: Vec<Peer>, last_given: RaftId) {
        let mut entries = self.entries.lock();
        let mut old = std::mem::take(&mut *entries);
        for peer in peers.into_iter().filter(|peer| peer.raft_id != own) {
            let raft_id = peer.raft_id;
            let entry = match old.remove(&raft_id) {
                Some(entry) if entry.member.peer == peer => entry,
                // The same node at another address: this node dials it anew, the connections that
                // the member dialled stay its own.
                Some(MemberEntry { member, accepted }) if member.peer.node == peer.node => {
                    member.leave();
                    MemberEntry { member: Member::new(peer), accepted }
                }
                other => {
                    other.into_iter().for_each(MemberEntry::close);
                    MemberEntry { member: Member::new(peer), accepted: Vec::new() }
                }
            };
            entries.insert(raft_id, entry);
        }
        old.into_values().for_each(MemberEntry::close);
        // After the members: who is listed there must not be taken for one that was removed.
        self.last_given.store(last_given.0, Ordering::Release);
    }

    /// Tells whether a member was removed: its id was given, and it is not listed.
    pub fn was_removed(&self, raft_id: RaftId) -> bool {
        // Before the members, so that both are of one list or the members of a later one.
        let was_given = raft_id.0 <= self.last_given.load(Ordering::Acquire);
        was_given && !self.entries.lock().contains_key(&raft_id)
    }

    /// Returns the member with this raft id.
    pub fn get(&self, raft_id: RaftId) -> Option<Arc<Member>> {
        self.entries.lock().get(&raft_id).map(|entry| Arc::clone(&entry.member))
    }

    /// Records a connection that `name` dialled; returns `false` when that is no member.
    pub fn accept(&self, name: &MemberName, connection: &Connection) -> bool {
        let mut entries = self.entries.lock();
        let entry = entries.get_mut(&name.raft_id);
        let Some(entry) = entry.filter(|entry| entry.member.peer.node == name.node) else {
            return false;
        };
        entry.accepted.push(connection.clone());
        if entry.accepted.len() > ACCEPTED_MAX {
            entry.accepted.remove(0).close(REPLACED, b"a newer connection is there");
        }
        // The address before the backoff is cleared: the attempt that this wakes dials it.
        *entry.member.seen.lock() = Some(connection.remote_address());
        entry.member.link.send_modify(Link::clear_backoff);
        true
    }

    /// Forgets a connection that has ended.
    pub fn forget(&self, name: &MemberName, connection: &Connection) {
        if let Some(entry) = self.entries.lock().get_mut(&name.raft_id) {
            entry.accepted.retain(|other| other.stable_id() != connection.stable_id());
            // Two processes with one certificate may have called from two addresses. The one whose
            // connection has ended is gone: the other's address is the one to dial.
            if let Some(last) = entry.accepted.last() {
                *entry.member.seen.lock() = Some(last.remote_address());
            }
        }
    }

    /// Returns whether a member was last seen at this address, or is known to be there.
    pub fn is_member_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.entries.lock().values().any(|entry| entry.member.is_at(address))
    }
}

impl MemberEntry {
    /// Closes all connections from and to the member.
    fn close(self) {
        self.member.leave();
        self.accepted.iter().for_each(close_as_non_member);
    }
}

impl Member {
    fn new(peer: Peer) -> Arc<Self> {
        Arc::new(Self {
            peer,
            link: watch::Sender::new(Link::new()),
            seen: Mutex::default(),
            hinted: AtomicUsize::new(0),
            control: Arc::new(Semaphore::new(CONTROL_CALLS_MAX)),
            raft: Arc::new(Semaphore::new(RAFT_CALLS_MAX)),
            http: Arc::new(Semaphore::new(PEER_HTTP_STREAMS_MAX)),
            bulk: Arc::new(Semaphore::new(BULK_CALLS_MAX)),
        })
    }

    /// Returns the address that the member last called from, when the log has another: the member
    /// has started again elsewhere, and there may be no quorum to change the log.
    pub fn moved_to(&self) -> Option<SocketAddr> {
        let seen = *self.seen.lock();
        seen.filter(|seen| seen.to_string() != self.peer.addr)
    }

    fn is_at(&self, address: IpAddr) -> bool {
        let seen = *self.seen.lock();
        let known = self.peer.addr.parse::<SocketAddr>().ok();
        // A host name is an address once it has been dialled.
        let dialled = self.link.borrow().connection().map(Connection::remote_address);
        [seen, known, dialled].into_iter().flatten().any(|at| at.ip().to_canonical() == address)
    }

    /// Returns the hint that the next attempt tries beside the known address: each in turn.
    pub fn next_hint<'a>(&self, hints: &'a [String]) -> Option<&'a str> {
        let turn = self.hinted.fetch_add(1, Ordering::Relaxed);
        let hint = hints.get(turn.checked_rem(hints.len())?)?;
        (*hint != self.peer.addr).then_some(hint)
    }

    /// Takes a permit for a call or a stream in this lane.
    ///
    /// # Errors
    /// When too many calls of the lane are in progress: waiting would hide the overload.
    pub fn call_permit(&self, lane: Lane) -> Result<OwnedSemaphorePermit, PeerError> {
        let permits = match lane {
            Lane::Control => &self.control,
            Lane::Raft => &self.raft,
            Lane::Http => &self.http,
            Lane::Bulk => &self.bulk,
        };
        let permit = Arc::clone(permits).try_acquire_owned();
        permit.map_err(|_| self.unreachable("too many calls under way"))
    }

    /// Makes the error of a call that did not reach the member.
    pub fn unreachable(&self, why: impl Into<String>) -> PeerError {
        PeerError::Unreachable { to: self.peer.raft_id, why: why.into() }
    }

    /// Ends the link for good and closes its connection.
    fn leave(&self) {
        let mut connection = None;
        self.link.send_modify(|link| connection = link.leave());
        connection.iter().for_each(close_as_non_member);
    }
}

/// Closes a connection whose other end is not a member.
pub(in crate::quic) fn close_as_non_member(connection: &Connection) {
    connection.close(NOT_A_MEMBER, NOT_A_MEMBER_TEXT);
}

/// Closes a connection whose other end was a member and was removed, and tells it so.
pub(in crate::quic) fn close_as_removed(connection: &Connection) {
    connection.close(REMOVED, REMOVED_TEXT);
}

/// Tells whether a member closed a connection because this node was removed.
pub(super) fn told_of_removal(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(close) if close.error_code == REMOVED)
}

/// Closes a connection whose other end is a member of the former cluster, and tells it so.
pub(in crate::quic) fn close_as_former(connection: &Connection, cluster: Uuid) {
    let why = format!(
        "it was recovered by force without this node, as cluster {cluster}, and what this node has \
         counts there no more; to go on there, start this node with an empty data directory and \
         --join, and keep this directory as long as something may be missing there"
    );
    connection.close(RECOVERED, why.as_bytes());
}

/// Returns what a node says that was recovered by force without this one, when it closed a connection
/// for that reason.
pub(super) fn told_of_recovery(error: &ConnectionError) -> Option<String> {
    match error {
        ConnectionError::ApplicationClosed(close) if close.error_code == RECOVERED => {
            Some(String::from_utf8_lossy(&close.reason).into_owned())
        }
        _ => None,
    }
}

impl Closable for Connection {
    fn closed(&self) -> Option<String> {
        self.close_reason().map(|reason| reason.to_string())
    }
}
