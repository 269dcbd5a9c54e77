//! The receiving side: requests of other replicas of a group.
//!
//! Invariants:
//! - The sender of a leader's or a candidate's message is that leader or candidate: its identity
//!   comes from its certificate, never from what it says.
//! - Declined means that nothing was done. A request that openraft took is answered as openraft
//!   says.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::storage::Snapshot;
use openraft::type_config::alias::SnapshotMetaOf;
use shiioo_actors::domain::ids::{RaftId, StateMachineId};
use shiioo_actors::ports::{Declined, Service, StoreError};
use tokio::time::Instant;

use super::convert;
use super::group::Group;
use super::snapshot::PieceError;
use super::snapshot_sender::Sent;
use super::snapshot_wire::{Claim, Offer, Piece, RoomFor};
use super::state_machine::SnapshotHandle;
use super::types::{TypeConfig, log_id, raft_vote, stored_membership, vote};
use super::wire::{AppendReply, Differs, DigestAt, RequestBody, Response};
use crate::log::record::Vote;

impl Group {
    /// Answers the request of the member `from` about this group.
    pub async fn serve(
        &self,
        from: RaftId,
        service: Service,
        request: RequestBody,
    ) -> Result<Response, Declined> {
        if service != request.service() {
            return Err(Declined(format!("{service:?} is not for this")));
        }
        if let Some(claimed) = claimed_sender(&request)
            && claimed.node != from
        {
            return Err(Declined(format!("node {from} speaks for node {}", claimed.node)));
        }
        // Waits while it is decided whether this node leaves the group.
        let _served = self.serves.read().await;
        let raft = self.raft();
        Ok(match request {
            RequestBody::Append(append) => {
                let request = convert::append_from_wire(self.id(), &append).map_err(Declined)?;
                // Before the entries are synced, which may take long: openraft counts the lease from here.
                let arrived = Instant::now();
                let appended = raft.append_entries(request).await.map_err(declined)?;
                self.allow_election_if_caught_up();
                let reply = convert::appended_to_wire(&appended);
                if !matches!(reply, AppendReply::HigherVote(_)) {
                    self.network().pulse.sign(arrived);
                }
                Response::Append(reply)
            }
            RequestBody::Vote(ballot) | RequestBody::PreVote(ballot)
                if self.had_more_than(ballot.last) =>
            {
                return Err(Declined("this replica was removed once with a longer log: it does not vote for one that ends earlier".into()));
            }
            RequestBody::Transfer(_) if self.is_returning() => {
                return Err(Declined("this replica came back, and has not caught up yet".into()));
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
            RequestBody::Offer(Offer { vote, part }) => match self.later_vote(vote) {
                Some(known) => Response::Snapshot(Some(known)),
                None => {
                    let held = self.network().sink().held(self.id(), part).await;
                    Response::Held(held.map_err(declined)?)
                }
            },
            RequestBody::RoomFor(RoomFor { vote, part, bytes }) => match self.later_vote(vote) {
                Some(known) => Response::Snapshot(Some(known)),
                None => match self.network().copies().look(part, bytes) {
                    Ok(()) => Response::Noted,
                    Err(lacking) => Response::NoRoom(lacking),
                },
            },
            RequestBody::Piece(piece) => self.take_piece(piece).await?,
            RequestBody::Claim(claim) => Response::Snapshot(Some(self.take_claim(claim).await?)),
            RequestBody::Resend(part) => {
                self.resend(from, part).await?;
                Response::Noted
            }
            RequestBody::DigestAt(DigestAt { part, at }) => {
                let digest = self.network().sink().digest(self.id(), part, at).await;
                Response::Digest(digest.map_err(declined)?)
            }
            RequestBody::Differs(differs) => match self.later_vote(differs.vote) {
                Some(known) => Response::Snapshot(Some(known)),
                None if !differs.vote.committed => {
                    return Err(Declined("a notice of a node that does not lead".into()));
                }
                None => {
                    let Differs { part, at, digest, .. } = differs;
                    let taken = self.network().sink().distrust(self.id(), part, at, digest).await;
                    taken.map_err(declined)?;
                    Response::Noted
                }
            },
        })
    }

    /// Gives the vote that this node knows, where its term is later than a sender's.
    fn later_vote(&self, sender: Vote) -> Option<Vote> {
        let known = vote(&self.raft().metrics().borrow_watched().vote);
        (known.term > sender.term).then_some(known)
    }

    /// Takes a piece of a state machine, and puts the state machine in its place with the last one. That is
    /// right whatever becomes of the snapshot: what a leader holds is committed, and the entries are
    /// skipped that the log delivers again.
    async fn take_piece(&self, piece: Piece) -> Result<Response, Declined> {
        if let Some(known) = self.later_vote(piece.vote) {
            return Ok(Response::Snapshot(Some(known)));
        }
        let (sink, copies, part) = (self.network().sink(), self.network().copies(), piece.part);
        let bytes = piece.bytes();
        // Held while the piece is written: the pieces of one transfer come one after another, and those of another
        // one begin when this is known to be over.
        let mut assembler = self.assembler().lock().await;
        let assembled = assembler.add(self.id(), piece, sink, Instant::now()).await;
        drop(assembler);
        let staged = match assembled {
            Ok(None) => return Ok(Response::Snapshot(None)),
            Ok(Some((_, staged))) => staged,
            Err(PieceError::NoRoom) => return Ok(Response::NoRoom(copies.lacked(part, bytes))),
            Err(PieceError::Refused(why)) => return Err(Declined(why)),
        };
        match sink.install(self.id(), part, staged).await {
            Ok(()) => {
                copies.arrived(part);
                Ok(Response::Snapshot(None))
            }
            Err(StoreError::Full) => Ok(Response::NoRoom(copies.lacked(part, bytes))),
            Err(error) => Err(declined(error)),
        }
    }

    /// Takes a snapshot of which everything has come.
    async fn take_claim(&self, claim: Claim) -> Result<Vote, Declined> {
        if let Some(known) = self.later_vote(claim.vote) {
            return Ok(known);
        }
        claim.check().map_err(Declined)?;
        let Claim { vote: sender, upto, members, parts } = claim;
        tracing::info!(group = %self.id(), from = sender.node.0, %upto, "a snapshot has arrived");
        // Before openraft takes the snapshot: an error there would end the group.
        let kept = self.network().sink().keep_only(self.id(), parts, upto).await;
        kept.map_err(declined)?;
        let snapshot = Snapshot {
            meta: SnapshotMetaOf::<TypeConfig> {
                last_log_id: Some(log_id(upto)),
                last_membership: stored_membership(members.as_ref()),
            },
            snapshot: SnapshotHandle { group: self.id(), upto: Some(upto) },
        };
        let installed = self.raft().install_full_snapshot(raft_vote(sender), snapshot).await;
        self.allow_election_if_caught_up();
        Ok(vote(&installed.map_err(declined)?.vote))
    }
}

/// Longest wait until a state machine begins to be sent: less than whoever asks waits for that.
const RESEND_WAIT: Duration = Duration::from_secs(4);

impl Group {
    /// Begins to send a state machine to a replica whose files of it are damaged.
    async fn resend(&self, to: RaftId, part: StateMachineId) -> Result<(), Declined> {
        let refused = |why: &str| Err(Declined(why.into()));
        if !self.voters().replicas().contains(&to) {
            return refused("who asks has no replica of the group");
        }
        if self.network().snapshots.is_sent_to(to) {
            return refused("a snapshot of the group is being sent, and it is in there");
        }
        // One at a time: each is read whole, and sent. Waited for, or of many that ask together each would
        // have to ask again for each other.
        let turn = Arc::clone(self.resending()).acquire_owned();
        let Ok(Ok(turn)) = tokio::time::timeout(RESEND_WAIT, turn).await else {
            return refused("other state machines are being sent");
        };
        // After the wait: the lead may have gone meanwhile.
        let Some(vote) = self.leading_vote() else { return refused("this node does not lead") };
        let (replica, group) = (self.network().replica(to), self.id());
        let transfer = self.network().next_transfer();
        tokio::spawn(async move {
            let _turn = turn;
            match replica.send_part(vote, transfer, part).await {
                Ok(Sent::Whole) => tracing::info!(%group, to = to.0, %part, "a copy was sent"),
                Ok(Sent::Lacking(why) | Sent::NoRoom(why)) => {
                    tracing::warn!(%group, to = to.0, %part, why, "no copy to send")
                }
                Ok(Sent::Superseded(_)) => {}
                Err(error) => {
                    tracing::warn!(%group, to = to.0, %part, %error, "a copy did not arrive")
                }
            }
        });
        Ok(())
    }
}

/// Gives the vote of the sender that a request claims to be of, where that matters.
fn claimed_sender(request: &RequestBody) -> Option<Vote> {
    match request {
        RequestBody::Append(append) => Some(append.vote),
        RequestBody::Vote(ballot) | RequestBody::PreVote(ballot) => Some(ballot.vote),
        RequestBody::Transfer(transfer) => Some(transfer.vote),
        RequestBody::Offer(offer) => Some(offer.vote),
        RequestBody::RoomFor(room) => Some(room.vote),
        RequestBody::Piece(piece) => Some(piece.vote),
        RequestBody::Claim(claim) => Some(claim.vote),
        RequestBody::LogReverted(reverted) => Some(reverted.vote),
        RequestBody::Differs(differs) => Some(differs.vote),
        RequestBody::ReadIndex | RequestBody::Resend(_) | RequestBody::DigestAt(_) => None,
    }
}

fn declined(error: impl std::fmt::Display) -> Declined {
    Declined(error.to_string())
}
