//! How a node with an empty data directory becomes a member of a cluster that is there.
//!
//! It asks the members it was told of, one after the other, until one lets it in. What it was
//! given is durable before it acts on it, and what it asks with was durable before it asked: at
//! whatever point it dies, it asks again and is given the same place.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use shiioo_actors::cluster::join::{
    JoinAnswer, JoinReply, JoinRequest, JoinSecret, ParseTokenError, Prover,
};
use shiioo_actors::domain::membership::Member;
use shiioo_actors::domain::secret::is_same;
use shiioo_transport::join::{self, CaExpectation, JoinBinding, JoinError, JoinWays};
use tokio::time::{Instant, sleep};

use crate::config::Config;
use crate::identity::{Candidate, Identity, IdentityError};
use crate::seams::NodeSeams;

/// How long a node tries to join before it gives up.
const JOIN_DEADLINE: Duration = Duration::from_secs(60);
/// How long one member is waited for.
const ASK_DEADLINE: Duration = Duration::from_secs(8);
/// Wait before all members are asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Why a node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoiningError {
    /// The join token cannot be one.
    #[error("--join-token: {0}")]
    Token(#[from] ParseTokenError),
    /// A member said no.
    #[error("{at} does not let this node in: {why}")]
    Refused {
        /// Whom we asked.
        at: String,
        /// Its words.
        why: String,
    },
    /// Nobody let it in for a long time.
    #[error(
        "no member of the cluster let this node in within {} s; last, {at} said: {why}. Check the \
         addresses given with --join: they are the node addresses (UDP), not those of the API",
        JOIN_DEADLINE.as_secs()
    )]
    Nobody {
        /// Whom we asked last.
        at: String,
        /// What came of it.
        why: String,
    },
    /// What was given cannot be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Why one attempt failed.
enum Attempt {
    /// Asking again will not help.
    Final(JoiningError),
    /// It may.
    Again(String),
}

/// The members that `config` has the node ask: everybody named there but the node itself, which is
/// reached at `own`.
pub(crate) fn others<'a>(config: &'a Config, own: &str) -> Vec<&'a str> {
    config.join.iter().map(String::as_str).filter(|addr| *addr != own).collect()
}

/// Joins. The identity is durable when this returns.
pub(crate) async fn join(
    config: &Config,
    seams: &NodeSeams,
    candidate: &Candidate,
    member: Member,
) -> Result<Identity, JoiningError> {
    let others = others(config, &member.node_addr);
    let secret = config.join_token.as_ref().map(|token| token.reveal().parse::<JoinSecret>());
    let secret = secret.transpose()?;
    let give_up = Instant::now() + JOIN_DEADLINE;
    loop {
        let mut last = None;
        for &addr in &others {
            match ask(seams, candidate, &member, secret.as_ref(), addr).await {
                Ok(identity) => {
                    let (disk, kept) = (seams.disk.clone(), identity.clone());
                    seams.executor.run(move || kept.store(&*disk)).await?;
                    return Ok(identity);
                }
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Again(why)) => {
                    tracing::info!(%addr, %why, "not let in yet");
                    last = Some((addr, why));
                }
            }
        }
        if Instant::now() >= give_up {
            let (at, why) = last.map_or_else(Default::default, |(at, why)| (at.to_string(), why));
            return Err(JoiningError::Nobody { at, why });
        }
        sleep(ASK_AGAIN).await;
    }
}

async fn ask(
    seams: &NodeSeams,
    candidate: &Candidate,
    member: &Member,
    secret: Option<&JoinSecret>,
    addr: &str,
) -> Result<Identity, Attempt> {
    let expect = match secret.and_then(|secret| secret.authority) {
        Some(fingerprint) => CaExpectation::Fingerprint(fingerprint),
        None => CaExpectation::Any,
    };
    let public_key = candidate.key.public();
    let mut binding = [0; 32];
    let request = |connection: &JoinBinding| {
        binding = connection.binding;
        let token =
            secret.map(|secret| (secret.id, secret.prove(Prover::Joiner, &connection.binding)));
        JoinRequest { member: member.clone(), public_key, token }.encode()
    };
    let ways = JoinWays {
        udp: &*seams.udp,
        bind: any_port(addr),
        tcp: &seams.tcp,
        seams: &seams.seams,
        plain_packets: seams.plain_packets,
    };
    let deadline = Instant::now() + ASK_DEADLINE;
    let answered = join::ask(ways, addr, expect, request, deadline).await;
    let refused = |why: String| Attempt::Final(JoiningError::Refused { at: addr.to_owned(), why });
    let answer = match answered {
        Ok(answer) => answer,
        Err(error @ JoinError::WrongAuthority { .. }) => return Err(refused(error.to_string())),
        Err(error) => return Err(Attempt::Again(error.to_string())),
    };
    let reply = match JoinAnswer::decode(&answer.reply).map_err(Attempt::Again)? {
        JoinAnswer::Admitted(reply) => reply,
        JoinAnswer::Refused(why) => return Err(refused(why)),
        JoinAnswer::NotYet(why) => return Err(Attempt::Again(why)),
    };
    if let Some(secret) = secret {
        let expected = secret.prove(Prover::Member, &binding);
        if !reply.proof.is_some_and(|proof| is_same(&proof, &expected)) {
            return Err(refused(
                "it does not know the join token: it is not the cluster this token is for"
                    .to_owned(),
            ));
        }
    }
    let JoinReply { cluster, raft_id, certificate, peers, .. } = reply;
    Ok(Identity {
        node_id: candidate.node_id,
        cluster_id: cluster,
        raft_id,
        region: candidate.region.clone(),
        key: candidate.key.clone(),
        certificate,
        authority: answer.ca_cert,
        authority_key: None,
        peers,
        log_id: None,
    })
}

/// A socket of the same kind as the address that is asked; a name may be either.
fn any_port(addr: &str) -> SocketAddr {
    match addr.parse::<SocketAddr>() {
        Ok(SocketAddr::V6(_)) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        Ok(SocketAddr::V4(_)) | Err(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
    }
}
