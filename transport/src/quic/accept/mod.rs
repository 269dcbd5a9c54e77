//! The accepting side: which connections are let in, and how their requests are served.
//!
//! - [`admission`] bounds the handshakes in progress.
//! - [`unauthenticated`] bounds the connections of peers without a certificate, and names the one
//!   that has to make room for another.
//! - [`serve`] answers the requests of both kinds of peers.
//! - [`refusal_log`] keeps a flood of refused connections from flooding the log.
//!
//! After its handshake a connection is a member's, an unauthenticated peer's, or closed: there is
//! no fourth state.

pub(super) mod admission;
mod refusal_log;
mod serve;
pub(super) mod unauthenticated;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quinn::{Connection, Endpoint, Incoming, VarInt};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::dial::members::{Members, close_as_former, close_as_non_member, close_as_removed};
use super::tls::{self, Protocol};
use crate::pki::MemberName;
use admission::{Admission, HandshakePermit, Handshakes};
use refusal_log::RefusalLog;
pub(super) use serve::Services;
use unauthenticated::{Entry, UnauthenticatedPeers};

/// Longest handshake, ms.
const HANDSHAKE_MS_MAX: u64 = 2_000;
/// Connections of unauthenticated peers at a time.
pub(super) const UNAUTHENTICATED_MAX: usize = 64;
/// Requests to join that are served at a time.
const JOINS_MAX: usize = 4;
/// Code of a connection that is refused after its handshake.
const REFUSED: VarInt = VarInt::from_u32(4);

/// Holds what the accepted connections of one node share.
struct Acceptor {
    name: MemberName,
    /// The cluster that this one was recovered from.
    former: Option<Uuid>,
    members: Arc<Members>,
    services: Services,
    handshakes: Arc<Mutex<Handshakes>>,
    refusal_log: Mutex<RefusalLog>,
    unauthenticated: Mutex<UnauthenticatedPeers<Connection>>,
    joins: Semaphore,
}

/// Accepts connections until the endpoint is closed.
pub(super) async fn run(
    endpoint: Endpoint,
    (name, former): (MemberName, Option<Uuid>),
    members: Arc<Members>,
    services: Services,
) {
    let acceptor = Arc::new(Acceptor {
        name,
        former,
        members,
        services,
        handshakes: Arc::default(),
        refusal_log: Mutex::default(),
        unauthenticated: Mutex::new(UnauthenticatedPeers::new(UNAUTHENTICATED_MAX)),
        joins: Semaphore::new(JOINS_MAX),
    });
    while let Some(incoming) = endpoint.accept().await {
        let address = incoming.remote_address().ip();
        let proven = incoming.remote_address_validated();
        let is_member = acceptor.members.is_member_address(address);
        // Judged here and counted by the permit below: this loop alone begins handshakes, so that
        // none can slip in between.
        let admission = acceptor.handshakes.lock().judge(address, proven, is_member);
        match admission {
            Admission::Begin => {
                let permit = HandshakePermit::new(&acceptor.handshakes, address, is_member);
                tokio::spawn(receive(Arc::clone(&acceptor), incoming, address, permit));
            }
            // Fails only for an address that is proven, which is never told to prove itself.
            Admission::Prove => drop(incoming.retry()),
            Admission::Refuse => {
                incoming.refuse();
                acceptor.log_refusal(address, "too many handshakes are under way");
            }
        }
    }
}

/// Completes a handshake and serves the connection that comes of it.
async fn receive(
    acceptor: Arc<Acceptor>,
    incoming: Incoming,
    address: IpAddr,
    permit: HandshakePermit,
) {
    let handshake = timeout(Duration::from_millis(HANDSHAKE_MS_MAX), incoming);
    let connection = match handshake.await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return acceptor.log_refusal(address, &error.to_string()),
        Err(_) => return acceptor.log_refusal(address, "the handshake took too long"),
    };
    // The permit is for the handshake: what follows has bounds of its own.
    drop(permit);
    match tls::protocol(&connection) {
        Some(Protocol::Peer) => acceptor.serve_member(connection).await,
        Some(Protocol::Join) => acceptor.serve_unauthenticated(connection).await,
        None => acceptor.refuse(&connection, "no protocol was agreed"),
    }
}

impl Acceptor {
    async fn serve_member(&self, connection: Connection) {
        let Some(name) = tls::peer_name(&connection) else {
            return self.refuse(&connection, "no certificate of a member was shown");
        };
        if self.former == Some(name.cluster) {
            let address = connection.remote_address().ip();
            self.log_refusal(address, &format!("{name} is of the cluster before the recovery"));
            return close_as_former(&connection, self.name.cluster);
        }
        let known = name.cluster == self.name.cluster && self.members.accept(&name, &connection);
        if !known {
            let address = connection.remote_address().ip();
            // Of another node with the same id nothing is known: it was never the member.
            let was_removed =
                name.cluster == self.name.cluster && self.members.was_removed(name.raft_id);
            let what = if was_removed { "was removed" } else { "is not a member" };
            self.log_refusal(address, &format!("{name} {what}"));
            return match was_removed {
                true => close_as_removed(&connection),
                false => close_as_non_member(&connection),
            };
        }
        serve::member(name.raft_id, &connection, Arc::clone(&self.services.peers)).await;
        self.members.forget(&name, &connection);
    }

    async fn serve_unauthenticated(&self, connection: Connection) {
        let address = connection.remote_address().ip();
        let entry = self.unauthenticated.lock().enter(address, connection.clone());
        let Entry::Admitted { number, is_requesting, instead_of } = entry else {
            return self.refuse(&connection, "too many peers are asking to join");
        };
        if let Some(idle) = instead_of {
            self.refuse(&idle, "it asked for nothing, and another came");
        }
        let join = Arc::clone(&self.services.join);
        serve::unauthenticated(&connection, join, &self.joins, &is_requesting).await;
        self.unauthenticated.lock().leave(number);
        connection.close(VarInt::from_u32(0), b"");
    }

    fn refuse(&self, connection: &Connection, why: &str) {
        connection.close(REFUSED, why.as_bytes());
        self.log_refusal(connection.remote_address().ip(), why);
    }

    fn log_refusal(&self, address: IpAddr, why: &str) {
        if self.refusal_log.lock().should_log(address, Instant::now()) {
            tracing::warn!(%address, why, "a connection was refused");
        }
    }
}
