//! The receiving side: requests of other replicas of a group.
//!
//! Invariants:
//! - The sender of a leader's or a candidate's message is that leader or candidate: its identity
//!   comes from its certificate, never from what it says.
//! - Declined means that nothing was done. A request that openraft took is answered as openraft
//!   says.

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::storage::Snapshot;
use openraft::type_config::alias::SnapshotMetaOf;
use shiioo_actors::ports::{Declined, Service};
use tokio::time::Instant;

use super::convert;
use super::group::Group;
use super::snapshot::Assembled;
use super::state_machine::SnapshotHandle;
use super::types::{TypeConfig, log_id, raft_vote, stored_membership, vote};
use super::wire::{Chunk, RequestBody, Response};
use crate::log::record::Vote;

impl Group {
    /// Answers the request of the member `from` about this group.
    pub async fn serve(
        &self,
        from: u64,
        service: Service,
        request: RequestBody,
    ) -> Result<Response, Declined> {
        let expected = if matches!(request, RequestBody::Chunk(_)) {
            Service::Snapshot
        } else {
            Service::Raft
        };
        if service != expected {
            return Err(Declined(format!("{service:?} is not for this")));
        }
        if let Some(claimed) = claimed_sender(&request)
            && claimed.node != from
        {
            return Err(Declined(format!("node {from} speaks for node {}", claimed.node)));
        }
        self.assembler().lock().drop_idle(Instant::now());
        let raft = self.raft();
        Ok(match request {
            RequestBody::Append(append) => {
                let request = convert::append_from_wire(self.id(), &append).map_err(Declined)?;
                let appended = raft.append_entries(request).await.map_err(declined)?;
                Response::Append(convert::appended_to_wire(&appended))
            }
            RequestBody::Vote(ballot) => {
                let voted = raft.vote(convert::ballot_from_wire(&ballot)).await;
                Response::Vote(convert::voted_to_wire(&voted.map_err(declined)?))
            }
            RequestBody::PreVote(ballot) => {
                let voted = raft.pre_vote(convert::ballot_from_wire(&ballot)).await;
                Response::Vote(convert::voted_to_wire(&voted.map_err(declined)?))
            }
            RequestBody::Transfer(transfer) => {
                let request = convert::transfer_from_wire(&transfer);
                let taken = raft.handle_transfer_leader(request).await.map_err(declined)?;
                Response::Transfer(convert::transferred_to_wire(&taken))
            }
            RequestBody::ReadIndex => Response::ReadIndex(self.confirmed_index().await.ok()),
            // This one concerns the whole node: see `Groups::serve`.
            RequestBody::LogReverted(_) => Response::Noted,
            RequestBody::Chunk(chunk) => Response::Chunk(self.take_chunk(chunk).await?),
        })
    }

    /// Takes a chunk of a snapshot, and installs the snapshot with its last one.
    async fn take_chunk(&self, chunk: Chunk) -> Result<Option<Vote>, Declined> {
        let known = vote(&self.raft().metrics().borrow_watched().vote);
        if known.term > chunk.vote.term {
            return Ok(Some(known));
        }
        // Checked before the chunk is kept: a second snapshot would only fill memory while it
        // waits.
        if self.progress().is_installing() {
            return Err(Declined("a snapshot is being installed already".into()));
        }
        let assembled = self.assembler().lock().add(chunk, Instant::now()).map_err(Declined)?;
        let Some(Assembled { vote: sender, upto, members, dump }) = assembled else {
            return Ok(None);
        };
        tracing::info!(group = %self.id(), from = sender.node, %upto, "a snapshot has arrived");
        let snapshot = Snapshot {
            meta: SnapshotMetaOf::<TypeConfig> {
                last_log_id: Some(log_id(upto)),
                last_membership: stored_membership(members.as_ref()),
            },
            snapshot: SnapshotHandle { group: self.id(), upto: Some(upto), dump: Some(dump) },
        };
        let installed = self.raft().install_full_snapshot(raft_vote(sender), snapshot).await;
        Ok(Some(vote(&installed.map_err(declined)?.vote)))
    }
}

/// Gives the vote of the sender that a request claims to be of, where that matters.
fn claimed_sender(request: &RequestBody) -> Option<Vote> {
    match request {
        RequestBody::Append(append) => Some(append.vote),
        RequestBody::Vote(ballot) | RequestBody::PreVote(ballot) => Some(ballot.vote),
        RequestBody::Transfer(transfer) => Some(transfer.vote),
        RequestBody::Chunk(chunk) => Some(chunk.vote),
        RequestBody::LogReverted(reverted) => Some(reverted.vote),
        RequestBody::ReadIndex => None,
    }
}

fn declined(error: impl std::fmt::Display) -> Declined {
    Declined(error.to_string())
}
