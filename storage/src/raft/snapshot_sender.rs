//! The sending side of snapshots: all of a group, or one state machine that another replica has lost.

use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use openraft::errors::{RPCError, StreamingError, Unreachable};
use openraft::raft::SnapshotResponse;
use openraft::type_config::alias::SnapshotOf;
use shiioo_actors::domain::ids::StateMachineId;
use shiioo_actors::ports::{CopyProgress, PeerError};

use super::convert;
use super::group::Group;
use super::network::{Replica, rpc_error};
use super::snapshot::Cutter;
use super::snapshot_wire::{Claim, NoRoom, Offer, RoomFor};
use super::state_machine::SnapshotHandle;
use super::types::{RaftVote, TypeConfig, position, raft_vote, vote};
use super::wire::{RequestBody, Response};
use crate::log::record::Vote;

/// Time for a piece of a snapshot, beside the time for its bytes.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for what is answered when something is durable at the receiver: an offer, the last piece of a
/// state machine, the claim.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes that a receiver puts in place in a second at least, when the last piece has come.
const INSTALLED_BYTES_A_SECOND: u64 = 8 << 20;

/// Segments of the log that are kept for the sake of a snapshot while it is being sent. All groups write
/// them: a group that is nearly idle keeps what the others write, too.
const KEPT_SEGMENTS_MAX: usize = 32;

/// What became of one state machine of a snapshot.
pub(super) enum Sent {
    /// The receiver has everything that this node holds of it, durably.
    Whole,
    /// One of the two replicas cannot: it is damaged, or what this one holds is not in its files. The others are not in
    /// its way.
    Lacking(String),
    /// The receiver has no room for it.
    NoRoom(String),
    /// The receiver knows a leader of a later term.
    Superseded(Vote),
}

impl Group {
    /// Tells whether the log is not to be cut: a replica that is being sent a snapshot goes on from the entries behind it.
    /// If they went while it is sent, which may be long, the replica would need another snapshot, and so on.
    pub(super) fn keeps_log(&self) -> bool {
        let log = self.network().log();
        if !self.network().snapshots.is_any() || log.is_full() || log.is_on_small_disk() {
            return false;
        }
        log.segments_from(self.id()) <= KEPT_SEGMENTS_MAX
    }
}

impl Replica {
    /// Sends a snapshot of the group: what the receiver lacks of each state machine, then the claim.
    pub(super) async fn send_snapshot(
        &self,
        sender: RaftVote,
        snapshot: SnapshotOf<TypeConfig, SnapshotHandle>,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let group = self.network.group();
        let unsendable = |why: String| {
            tracing::warn!(%group, to = self.raft_id.0, why, "no snapshot can be sent");
            Unreachable::from_string(why)
        };
        let sender = vote(&sender);
        // What is asked for meanwhile is in the snapshot, and the receiver puts one at a time together.
        let sending = self.network.snapshots.begin(self.raft_id, sender.term);
        let superseded = |theirs: Vote| SnapshotResponse::new(raft_vote(theirs));
        let upto = snapshot.meta.last_log_id.as_ref().map(position);
        let upto = upto.ok_or_else(|| unsendable("the snapshot is empty".into()))?;
        let members = convert::stored_members(&snapshot.meta.last_membership);
        let transfer = self.network.next_transfer();
        // What is deleted from now on the receiver may get all the same: the log deletes it there.
        let parts = self.network.sink().parts(group).await;
        let parts = parts.map_err(|error| unsendable(error.to_string()))?;
        let (mut lacking, mut has_room, mut state_machines) = (None, true, 0);
        for part in parts.iter().copied() {
            self.network.snapshots.copied(self.raft_id, CopyProgress { state_machines, bytes: 0 });
            match self.send_part(sender, transfer, part).await? {
                Sent::Whole => state_machines += 1,
                // Its neighbours get what they lack.
                Sent::Lacking(why) => lacking = Some(why),
                Sent::NoRoom(why) => (lacking, has_room) = (Some(why), false),
                Sent::Superseded(theirs) => return Ok(superseded(theirs)),
            }
        }
        let wait = self.network.snapshots.note_room_of(self.raft_id, has_room);
        if let Some(why) = lacking {
            // Nothing is being sent while it is waited: the log is not kept for it.
            drop(sending);
            tokio::time::sleep(wait).await;
            return Err(unsendable(why).into());
        }
        // Last: whatever it claims is durable there by now.
        let claim = RequestBody::Claim(Claim { vote: sender, upto, members, parts });
        let claimed = self.call(claim, INSTALL_TIMEOUT).await.map_err(rpc_error)?;
        self.network.snapshots.answered(self.raft_id);
        match claimed {
            Response::Snapshot(Some(theirs)) => Ok(superseded(theirs)),
            _ => Err(rpc_error(self.unexpected_reply()).into()),
        }
    }

    /// Sends what the receiver lacks of one state machine.
    pub(super) async fn send_part(
        &self,
        sender: Vote,
        transfer: u64,
        part: StateMachineId,
    ) -> Result<Sent, RPCError<TypeConfig>> {
        let offer = RequestBody::Offer(Offer { vote: sender, part });
        let held = match self.call(offer, INSTALL_TIMEOUT).await {
            Ok(Response::Held(held)) => held,
            Ok(Response::Snapshot(Some(theirs))) => return Ok(Sent::Superseded(theirs)),
            Ok(_) => return Err(rpc_error(self.unexpected_reply())),
            Err(PeerError::Declined { why, .. }) => return Ok(Sent::Lacking(why)),
            Err(error) => return Err(rpc_error(error)),
        };
        self.network.snapshots.answered(self.raft_id);
        // Read now, and not when the snapshot was taken: the dump holds what the snapshot claims, or
        // more.
        let dump = match self.network.sink().dump(self.network.group(), part, held).await {
            Ok(Some(dump)) => dump,
            Ok(None) => return Ok(Sent::Whole),
            Err(error) => return Ok(Sent::Lacking(error.to_string())),
        };
        if let Some(refused) = self.ask_for_room(sender, part, dump.bytes).await? {
            return Ok(refused);
        }
        let mut cutter = Cutter::new(sender, transfer, part, &dump);
        // The part behind the one that is sent is read before, to know the last.
        let mut parts = dump.parts.peekable();
        let mut bytes = 0;
        while let Some(read) = parts.next().await {
            let read = match read {
                Ok(read) => read,
                Err(error) => return Ok(Sent::Lacking(error.to_string())),
            };
            bytes += read.cost() as u64;
            let is_last = Pin::new(&mut parts).peek().await.is_none();
            for piece in cutter.cut(read, is_last) {
                let piece_bytes = piece.bytes();
                let base = match piece.is_last {
                    true => INSTALL_TIMEOUT + Duration::from_secs(bytes / INSTALLED_BYTES_A_SECOND),
                    false => PIECE_TIMEOUT,
                };
                match self.call(RequestBody::Piece(piece), base).await {
                    Ok(Response::Snapshot(None)) => {
                        self.network.snapshots.copied_further(self.raft_id, piece_bytes)
                    }
                    Ok(Response::Snapshot(Some(theirs))) => return Ok(Sent::Superseded(theirs)),
                    Ok(Response::NoRoom(NoRoom { free })) => return Ok(no_room(bytes, free)),
                    Ok(_) => return Err(rpc_error(self.unexpected_reply())),
                    // It takes no more of this one.
                    Err(PeerError::Declined { why, .. }) => return Ok(Sent::Lacking(why)),
                    Err(error) => return Err(rpc_error(error)),
                }
            }
        }
        Ok(Sent::Whole)
    }

    /// Asks the receiver whether it has room for what is about to be sent. Gives what becomes of that where it has
    /// none.
    async fn ask_for_room(
        &self,
        sender: Vote,
        part: StateMachineId,
        bytes: u64,
    ) -> Result<Option<Sent>, RPCError<TypeConfig>> {
        let room = RequestBody::RoomFor(RoomFor { vote: sender, part, bytes });
        match self.call(room, PIECE_TIMEOUT).await {
            Ok(Response::Noted) => Ok(None),
            Ok(Response::NoRoom(NoRoom { free })) => Ok(Some(no_room(bytes, free))),
            Ok(Response::Snapshot(Some(theirs))) => Ok(Some(Sent::Superseded(theirs))),
            Ok(_) => Err(rpc_error(self.unexpected_reply())),
            // A program of the version before knows no such question. It says with each piece whether that has room.
            Err(PeerError::Declined { .. }) => Ok(None),
            Err(error) => Err(rpc_error(error)),
        }
    }
}

fn no_room(bytes: u64, free: u64) -> Sent {
    Sent::NoRoom(format!("it has room for {free} bytes beside its log, and not for {bytes}"))
}
