//! Answers nodes that ask to be let in: the member's side of
//! [`cluster::join`](crate::cluster::join).
//!
//! The checks are in the order of what they cost the cluster, the cheapest first:
//! 1. the request can be read, and its texts are short;
//! 2. the rules, from this node's own state. A token that is not known here may have been made a
//!    moment ago on another node: then group 0 is asked, for one peer at a time;
//! 3. the proof, or the loopback rule. A token that is not known and a proof that is wrong get the
//!    same answer, so that nobody learns which ids exist;
//! 4. `AdmitMember` is proposed, and decides about the token once more: what was read before may
//!    have been used up since. The proof is not looked at again, as it belongs to this connection;
//! 5. the certificate is signed, with the authority's key from group 0, and the peers are listed:
//!    after the admission, so that the state has the new member where this node leads.
//!
//! `Refused` means that asking again in the same way will not help; everything that passes is
//! `NotYet`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::join::{JoinAnswer, JoinReply, JoinRequest, Prover, proof};
use crate::command::{AdmitMember, MemberAdmitted, Outcome, Refusal, SystemCommand};
use crate::domain::ids::TokenId;
use crate::domain::membership::{JoinToken, Member};
use crate::domain::secret::is_same;
use crate::ports::seams::Seams;
use crate::ports::{BoxFuture, CertificateIssuer, Declined, JoinService, UnauthenticatedPeer};
use crate::services::control::Control;
use crate::state::system::SystemState;

/// How long letting a node in may take.
const ADMIT_DEADLINE: Duration = Duration::from_secs(5);
/// Longest address, region, label or version of a node, bytes.
const TEXT_BYTES_MAX: usize = 256;
/// What a node is told that comes too early.
const BEING_FOUNDED: &str = "the cluster is being founded";
/// Most labels of a node.
const LABELS_MAX: usize = 64;

/// Lets nodes in.
pub struct JoinHandler {
    control: Control,
    issuer: Arc<dyn CertificateIssuer>,
    seams: Seams,
    /// Held while a token is looked up that is not known here.
    look_ups: tokio::sync::Mutex<()>,
}

/// What the handler has to know of the cluster to decide.
struct Rules {
    is_founded: bool,
    token: Option<JoinToken>,
    is_open_to_loopback: bool,
    members_on_loopback: bool,
}

impl JoinHandler {
    /// A handler of this node.
    pub fn new(control: Control, issuer: Arc<dyn CertificateIssuer>, seams: Seams) -> Self {
        Self { control, issuer, seams, look_ups: tokio::sync::Mutex::default() }
    }

    async fn admit(
        &self,
        stranger: UnauthenticatedPeer,
        request: &[u8],
    ) -> Result<JoinReply, JoinAnswer> {
        let request = JoinRequest::decode(request).map_err(JoinAnswer::Refused)?;
        check_member(&request.member)?;
        let deadline = Instant::now() + ADMIT_DEADLINE;
        let token = request.token.map(|(id, _)| id);
        let rules = self.rules(token, deadline).await?;
        if !rules.is_founded {
            return Err(not_yet(BEING_FOUNDED));
        }
        let proof = self.check(&rules, &request, stranger)?;

        let JoinRequest { member, public_key, .. } = request;
        let node = member.node;
        let command = SystemCommand::AdmitMember(AdmitMember { member, public_key, token });
        let outcome = self.control.send(deadline, command).await;
        let raft_id = match outcome.map_err(not_yet)? {
            Outcome::Admitted(MemberAdmitted { raft_id }) => raft_id,
            Outcome::Refused(refusal) => return Err(JoinAnswer::Refused(refusal.to_string())),
            Outcome::Ignored => return Err(not_yet(BEING_FOUNDED)),
            other => {
                let kind: &'static str = (&other).into();
                tracing::error!(kind, "an outcome of another request");
                return Err(not_yet("unknown outcome"));
            }
        };
        let known = |state: &SystemState| (state.authority().cloned(), state.peers());
        let (authority, peers) = self.control.read(deadline, known).await.map_err(not_yet)?;
        let authority = authority.ok_or_else(|| not_yet(BEING_FOUNDED))?;
        let certificate = self.issuer.issue(&authority, public_key, raft_id, node);
        let reply = JoinReply {
            cluster: authority.cluster,
            raft_id,
            certificate: certificate.map_err(JoinAnswer::Refused)?,
            peers: peers.into_iter().map(Into::into).collect(),
            proof,
        };
        tracing::info!(%node, raft_id = raft_id.0, from = %stranger.addr, "a node was let in");
        Ok(reply)
    }

    async fn rules(&self, token: Option<TokenId>, deadline: Instant) -> Result<Rules, JoinAnswer> {
        let read = move |state: &SystemState| Rules {
            is_founded: state.authority().is_some(),
            token: token.and_then(|id| state.join_token(id).cloned()),
            is_open_to_loopback: state.is_open_to_loopback(),
            members_on_loopback: state.peers().iter().all(|peer| is_loopback(&peer.addr)),
        };
        let rules = self.control.read(deadline, read).await.map_err(not_yet)?;
        if token.is_none() || rules.token.is_some() {
            return Ok(rules);
        }
        // It may have been made a moment ago, on another node. One peer at a time can have that
        // looked up: nothing is proven yet.
        let Ok(_turn) = self.look_ups.try_lock() else {
            return Err(not_yet("another node is joining: try again"));
        };
        self.control.read_linearizable(deadline, read).await.map_err(not_yet)
    }

    /// Whether the peer may come in. Gives the cluster's own proof.
    fn check(
        &self,
        rules: &Rules,
        request: &JoinRequest,
        stranger: UnauthenticatedPeer,
    ) -> Result<Option<[u8; 32]>, JoinAnswer> {
        let Some((_, shown)) = &request.token else {
            let on_loopback = rules.members_on_loopback
                && stranger.addr.ip().is_loopback()
                && is_loopback(&request.member.node_addr);
            return if rules.is_open_to_loopback && on_loopback {
                Ok(None)
            } else {
                Err(JoinAnswer::Refused(
                    "this cluster asks for a join token: give one with --join-token".to_owned(),
                ))
            };
        };
        let invalid = |why: &str| {
            JoinAnswer::Refused(Refusal::TokenInvalid { why: why.to_owned() }.to_string())
        };
        // One answer for what is not known and what is not proven: nobody learns which ids exist.
        let unknown = || invalid("it is not known here, or was not copied whole");
        let token = rules.token.as_ref().ok_or_else(unknown)?;
        let expected = proof(&token.secret_hash, Prover::Joiner, &stranger.binding);
        if !is_same(&expected, shown) {
            return Err(unknown());
        }
        // A node that was let in before may ask again with a token it has used up: group 0 knows.
        let is_spent = token.uses_left == Some(0);
        if let Some(why) = token.why_not(self.seams.clock.now()).filter(|_| !is_spent) {
            return Err(invalid(why));
        }
        Ok(Some(proof(&token.secret_hash, Prover::Member, &stranger.binding)))
    }
}

impl JoinService for JoinHandler {
    fn join(
        &self,
        stranger: UnauthenticatedPeer,
        request: Vec<u8>,
    ) -> BoxFuture<'_, Result<Vec<u8>, Declined>> {
        Box::pin(async move {
            let answer = self.admit(stranger, &request).await;
            let answer = answer.map_or_else(|refused| refused, JoinAnswer::Admitted);
            if let JoinAnswer::Refused(why) = &answer {
                tracing::warn!(%why, from = %stranger.addr, "a node was not let in");
            }
            Ok(answer.encode())
        })
    }
}

fn not_yet(error: impl std::fmt::Display) -> JoinAnswer {
    JoinAnswer::NotYet(error.to_string())
}

fn check_member(member: &Member) -> Result<(), JoinAnswer> {
    let texts = [&member.api_addr, &member.node_addr, member.region.as_str(), &member.version];
    let labels = member.labels.iter().flat_map(|(name, value)| [name.as_str(), value]);
    if texts.into_iter().chain(labels).any(|text| text.len() > TEXT_BYTES_MAX)
        || member.labels.len() > LABELS_MAX
    {
        return Err(JoinAnswer::Refused("the node's description is too long".to_owned()));
    }
    Ok(())
}

/// Whether an address is on the loopback interface. A name is not: it may be anywhere.
fn is_loopback(addr: &str) -> bool {
    let ip = addr.parse::<SocketAddr>().map(|addr| addr.ip());
    ip.or_else(|_| addr.parse::<IpAddr>()).is_ok_and(|ip| ip.is_loopback())
}
