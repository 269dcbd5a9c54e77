//! What the actors need from outside, as traits. The adapters (`storage`, `transport`) implement
//! them; `node` wires them.

mod certificates;
mod delivery;
pub mod descriptors;
mod dump;
pub mod error;
mod http;
mod peers;
mod replicated_log;
pub mod seams;
mod stores;
mod work;

pub use futures_util::future::BoxFuture;

pub use certificates::CertificateIssuer;
pub use delivery::{ApplySink, CommittedEntry, Held, Payload, Reply, StateDigest};
pub use dump::{Dump, DumpPart, Place, Staged, Staging, View};
pub use http::{HttpCallError, HttpCaller, HttpRequest, HttpResponse};
pub use peers::{
    Declined, JoinService, Lane, PEER_CALL_MAX, PEER_HTTP_STREAMS_MAX, PEER_MESSAGE_BYTES_MAX,
    PEER_SNAPSHOT_CALL_MAX, Peer, PeerError, PeerService, Peers, Service, StreamService,
    UnauthenticatedPeer,
};
pub use replicated_log::{
    CopyProgress, Durability, GroupLead, GroupStatus, Leadership, LogEntry, LogMismatch, LogStatus,
    Membership, Proposals, ProposeError, Replay, ReplicaStatus, ReplicatedLog,
};
pub use stores::{Found, Row, Store, StoreError, StoreStats, Stores};
pub use work::{Attempt, AttemptJournal, DEATHS_MAX, Job, WorkerPool};
