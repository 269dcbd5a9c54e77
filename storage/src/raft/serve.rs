//! The receiving side: what other replicas of a group ask of this one.
//!
//! Invariants:
//! - Whoever sends a leader's or a candidate's message is that leader or candidate: who a member
//!   is comes from its certificate, never from what it says.
//! - Declined means that nothing was done. What openraft has taken is answered as it says.

use std::sync::PoisonError;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::storage::Snapshot;
use openraft::type_config::alias::SnapshotMetaOf;
use shiioo_actors::ports::{Declined, Service};
use tokio::time::Instant;

use super::convert;
use super::group::Group;
use super::machine::SnapshotHandle;
use super::snapshot::Assembled;
use super::types::{TypeConfig, log_id, raft_vote, stored_membership, vote};
use super::wire::{Answer, Ask, Chunk};
use crate::log::record::Vote;

impl Group {
    /// Answers what the member `from` asks about this group.
    pub async fn serve(&self, from: u64, service: Service, ask: Ask) -> Result<Answer, Declined> {
        let expected = if matches!(ask, Ask::Chunk(_)) { Service::Snapshot } else { Service::Raft };
        if service != expected {
            return Err(Declined(format!("{service:?} is not for this")));
        }
        if let Some(claimed) = claimed_sender(&ask)
            && claimed.node != from
        {
            return Err(Declined(format!("node {from} speaks for node {}", claimed.node)));
        }
        self.assembly().drop_idle(Instant::now());
        let raft = self.raft();
        Ok(match ask {
            Ask::Append(append) => {
                let request = convert::append_from_wire(self.id(), &append).map_err(Declined)?;
                let appended = raft.append_entries(request).await.map_err(declined)?;
                Answer::Append(convert::appended_to_wire(&appended))
            }
            Ask::Vote(ballot) => {
                let voted = raft.vote(convert::ballot_from_wire(&ballot)).await;
                Answer::Vote(convert::voted_to_wire(&voted.map_err(declined)?))
            }
            Ask::PreVote(ballot) => {
                let voted = raft.pre_vote(convert::ballot_from_wire(&ballot)).await;
                Answer::Vote(convert::voted_to_wire(&voted.map_err(declined)?))
            }
            Ask::Transfer(transfer) => {
                let request = convert::transfer_from_wire(&transfer);
                let taken = raft.handle_transfer_leader(request).await.map_err(declined)?;
                Answer::Transfer(convert::transferred_to_wire(&taken))
            }
            Ask::ReadIndex => Answer::ReadIndex(self.confirmed_index().await.ok()),
            // It concerns the whole node: see `Groups::serve`.
            Ask::Reverted(_) => Answer::Noted,
            Ask::Chunk(chunk) => Answer::Chunk(self.take_chunk(chunk).await?),
        })
    }

    async fn take_chunk(&self, chunk: Chunk) -> Result<Option<Vote>, Declined> {
        let known = vote(&self.raft().metrics().borrow_watched().vote);
        if known.term > chunk.vote.term {
            return Ok(Some(known));
        }
        if self.keeper().is_installing() {
            return Err(Declined("a snapshot is being installed already".into()));
        }
        let assembled = self.assembly().take(chunk, Instant::now()).map_err(Declined)?;
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

    fn assembly(&self) -> std::sync::MutexGuard<'_, super::snapshot::Assembly> {
        self.assembly_lock().lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose message it says it is, where that matters.
fn claimed_sender(ask: &Ask) -> Option<Vote> {
    match ask {
        Ask::Append(append) => Some(append.vote),
        Ask::Vote(ballot) | Ask::PreVote(ballot) => Some(ballot.vote),
        Ask::Transfer(transfer) => Some(transfer.vote),
        Ask::Chunk(chunk) => Some(chunk.vote),
        Ask::Reverted(reverted) => Some(reverted.vote),
        Ask::ReadIndex => None,
    }
}

fn declined(error: impl std::fmt::Display) -> Declined {
    Declined(error.to_string())
}
