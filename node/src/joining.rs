//! How a node with an empty data directory becomes a member of a cluster.
//!
//! The node asks the members given with `--join`, one after the other, until one lets it in. Its id
//! and key are durable before it asks, and the identity that it is given is durable before it acts on
//! it: wherever it dies, it asks again and is given the same place.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use shiioo_actors::cluster::join::{
    JoinAnswer, JoinReply, JoinRequest, JoinSecret, ParseTokenError, Prover,
};
use shiioo_actors::domain::membership::Member;
use shiioo_actors::domain::secret::is_same;
use shiioo_transport::join::{self, CaExpectation, JoinBinding, JoinError, JoinSeams};
use tokio::time::{Instant, sleep};

use crate::config::Config;
use crate::identity::{Candidate, Identity, IdentityError};
use crate::seams::NodeSeams;

/// Longest time that a node tries to join.
const JOIN_DEADLINE: Duration = Duration::from_secs(60);
/// Longest wait for one member.
const ASK_DEADLINE: Duration = Duration::from_secs(8);
/// Pause before all members are asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Tells why a node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoiningError {
    /// The join token is not valid.
    #[error("--join-token: {0}")]
    Token(#[from] ParseTokenError),
    /// A member refused.
    #[error("{at} does not let this node in: {why}")]
    Refused {
        /// Address that was asked.
        at: String,
        /// Its reason.
        why: String,
    },
    /// No member let the node in before the deadline.
    #[error(
        "no member of the cluster let this node in within {} s; last, {at} said: {why}. Check the \
         addresses given with --join: they are the node addresses (UDP), not those of the API",
        JOIN_DEADLINE.as_secs()
    )]
    Nobody {
        /// Address that was asked last.
        at: String,
        /// Reason of the last failure.
        why: String,
    },
    /// The identity that was given cannot be written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Tells whether an attempt that failed may be repeated.
enum Attempt {
    /// Asking again does not help.
    Final(JoiningError),
    /// Asking again may help.
    Again(String),
}

/// Returns the addresses given with `--join`, without the node's own.
pub(crate) fn join_addresses<'a>(config: &'a Config, own: &str) -> Vec<&'a str> {
    config.join.iter().map(String::as_str).filter(|addr| *addr != own).collect()
}

/// Joins the cluster. The identity is durable when this returns.
pub(crate) async fn join(
    config: &Config,
    seams: &NodeSeams,
    candidate: &Candidate,
    member: Member,
) -> Result<Identity, JoiningError> {
    let addresses = join_addresses(config, &member.node_addr);
    let secret = config.join_token.as_ref().map(|token| token.reveal().parse::<JoinSecret>());
    let secret = secret.transpose()?;
    let identity = be_admitted(seams, candidate, &member, &addresses, secret.as_ref()).await?;
    // Before anything is done as a member: after a crash here the node is the same member, and spends
    // no second use of its token.
    let (disk, kept) = (seams.disk.clone(), identity.clone());
    seams.executor.run(move || kept.store(&*disk)).await?;
    Ok(identity)
}

/// Asks at these addresses, again and again, until a member lets the node in. Nothing of that is durable
/// here when this returns.
pub(crate) async fn be_admitted(
    seams: &NodeSeams,
    candidate: &Candidate,
    member: &Member,
    addresses: &[&str],
    secret: Option<&JoinSecret>,
) -> Result<Identity, JoiningError> {
    let give_up = Instant::now() + JOIN_DEADLINE;
    loop {
        let mut last = None;
        for &addr in addresses {
            match ask(seams, candidate, member, secret, addr).await {
                Ok(identity) => return Ok(identity),
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

/// Asks one member.
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
    let joiner = JoinSeams {
        udp: &*seams.udp,
        bind: any_port(addr),
        tcp: &seams.tcp,
        seams: &seams.seams,
        plain_packets: seams.plain_packets,
    };
    let deadline = Instant::now() + ASK_DEADLINE;
    let answered = join::ask(joiner, addr, expect, request, deadline).await;
    let refused = |why: String| Attempt::Final(JoiningError::Refused { at: addr.to_owned(), why });
    let answer = match answered {
        Ok(answer) => answer,
        // Not even asked. Another address may be a member's, but the operator has mixed up two
        // clusters: better said at once.
        Err(error @ JoinError::WrongAuthority { .. }) => return Err(refused(error.to_string())),
        Err(error) => return Err(Attempt::Again(error.to_string())),
    };
    let reply = match JoinAnswer::decode(&answer.reply).map_err(Attempt::Again)? {
        JoinAnswer::Admitted(reply) => reply,
        JoinAnswer::Refused(why) => return Err(refused(why)),
        JoinAnswer::NotYet(why) => return Err(Attempt::Again(why)),
    };
    // Before anything of the reply is used: a cluster that does not know the token is another one.
    if let Some(secret) = secret {
        let expected = secret.prove(Prover::Member, &binding);
        if !reply.proof.is_some_and(|proof| is_same(&proof, &expected)) {
            return Err(refused(
                "it does not know the join token: the token is for another cluster".to_owned(),
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
        former: None,
    })
}

/// Returns the address to bind for a destination: of its own IP version, of version 4 for a name.
fn any_port(addr: &str) -> SocketAddr {
    match addr.parse::<SocketAddr>() {
        Ok(SocketAddr::V6(_)) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        Ok(SocketAddr::V4(_)) | Err(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
    }
}
