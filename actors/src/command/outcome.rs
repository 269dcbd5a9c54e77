//! What a command came to. Refusals are outcomes too: every replica reaches the same one.

use serde::{Deserialize, Serialize};

use crate::domain::ids::{JobId, NodeId, RunId, TenantId, TokenId};
use crate::domain::json::Json;
use crate::domain::tenant::{Quota, TenantRecord};
use crate::ports::seams::Timestamp;

/// The answer of a state machine to one command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// The command did nothing, by its own rules (late timer, second result, old version), or the
    /// entry held no command.
    Ignored,
    /// The state machine refused it; nothing changed.
    Refused(Refusal),
    /// A tenant was created, changed or found under its idempotency key.
    Tenant {
        /// Which.
        tenant: TenantId,
        /// Version of its record in group 0.
        version: u64,
        /// Whether the idempotency key was known.
        replayed: bool,
    },
    /// A node was registered or found under its idempotency key.
    Node {
        /// Which.
        node: NodeId,
        /// Whether the idempotency key was known.
        replayed: bool,
    },
    /// A node was admitted, now or before.
    Admitted {
        /// Its id in Raft groups.
        raft_id: u64,
    },
    /// A join token was made, or found under its idempotency key.
    Token {
        /// Which.
        token: TokenId,
        /// Whether the idempotency key was known.
        replayed: bool,
    },
    /// Done, with nothing to tell.
    Done,
    /// A run was started or found under its idempotency key.
    Run {
        /// Which.
        run: RunId,
        /// Whether the idempotency key was known.
        replayed: bool,
    },
    /// A job was created or found under its idempotency key.
    Job {
        /// Which.
        job: JobId,
        /// The run started with it.
        run: Option<RunId>,
        /// Whether the idempotency key was known.
        replayed: bool,
    },
    /// A named workflow was written.
    Workflow {
        /// Its version now.
        version: u64,
        /// When this version was written.
        created_at: Timestamp,
    },
    /// The lock is the caller's.
    Locked(LockView),
    /// The lock is another's.
    HeldByOther(LockView),
    /// Whether the release ended a hold.
    Released(bool),
    /// A tenant was created or changed. The record is here, for what group 0 says of the tenant when
    /// the answer is written may be something else already.
    TenantSet {
        /// Which.
        tenant: TenantId,
        /// Version of its record in group 0.
        version: u64,
        /// What it became with this command.
        record: Box<TenantRecord>,
    },
}

impl Outcome {
    /// Whether a second attempt at the same request has to be told of it: it changed something,
    /// and doing it again would not come to the same by itself, as taking a lock does.
    pub const fn is_worth_keeping(&self) -> bool {
        match self {
            Self::Ignored
            | Self::Refused(_)
            | Self::HeldByOther(_)
            | Self::Locked(_)
            | Self::Released(false) => false,
            Self::Tenant { .. }
            | Self::TenantSet { .. }
            | Self::Node { .. }
            | Self::Admitted { .. }
            | Self::Done
            | Self::Run { .. }
            | Self::Job { .. }
            | Self::Workflow { .. }
            | Self::Token { .. }
            | Self::Released(true) => true,
        }
    }
}

/// A lock as its table holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockView {
    /// Key.
    pub key: String,
    /// Who holds it.
    pub holder: String,
    /// Fencing token of this grant.
    pub token: u64,
    /// Renewals of this grant.
    pub renewal: u64,
    /// Length of a term, milliseconds.
    pub ttl_ms: u64,
    /// When it was granted (a label: terms are measured by the leader's monotonic clock).
    pub acquired_at: Timestamp,
    /// When the present term ends, by the same label.
    pub expires_at: Timestamp,
    /// The holder's JSON.
    pub metadata: Json,
}

/// Why a state machine, or an actor before it, refused an operation. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// No such tenant.
    #[error("no tenant has this id")]
    TenantNotFound,
    /// No such run.
    #[error("this tenant has no run with this id")]
    RunNotFound,
    /// No such job.
    #[error("this tenant has no job with this id")]
    JobNotFound,
    /// No such named workflow (asked for by path).
    #[error("this tenant has no workflow named {name:?}")]
    WorkflowNotFound {
        /// The name.
        name: String,
    },
    /// No such named workflow (named in a body).
    #[error("workflow_name: this tenant has no workflow named {name:?}")]
    UnknownWorkflow {
        /// The name.
        name: String,
    },
    /// No such node.
    #[error("no node has this id")]
    NodeNotFound,
    /// The lock is not held.
    #[error("the lock {key:?} is not held")]
    LockNotFound {
        /// The key.
        key: String,
    },
    /// The tenant is suspended.
    #[error("the tenant is suspended: only reads and what winds work down are allowed")]
    TenantSuspended,
    /// The tenant is disabled.
    #[error("the tenant is disabled: only reads and what winds work down are allowed")]
    TenantDisabled,
    /// The proposer knew an older epoch of the tenant, or its state is not here yet.
    #[error("the tenant is not served here at the moment")]
    StaleEpoch,
    /// A quota is used up.
    #[error("quota {quota} exceeded: {used} of {limit} used")]
    QuotaExceeded {
        /// Which.
        quota: Quota,
        /// Its limit.
        limit: u64,
        /// What is used.
        used: u64,
        /// Seconds until waiting helps, where it does.
        retry_after_secs: Option<u64>,
    },
    /// The idempotency key was used with another body.
    #[error("the Idempotency-Key was used before with another body")]
    IdempotencyKeyReused,
    /// The idempotency table is full.
    #[error("{limit} idempotency keys are kept for 24 h; a call with a new one is refused")]
    TooManyKeys {
        /// The most keys kept.
        limit: u64,
    },
    /// `If-Match` names another version than the present one.
    #[error("the resource is at version {current} now")]
    PreconditionFailed {
        /// The present version.
        current: u64,
    },
    /// The run has ended already.
    #[error("the run has ended: {status}")]
    RunEnded {
        /// How.
        status: RunStatus,
    },
    /// The lock is not the caller's, or not any more.
    #[error("the lock {key:?} is not held by this holder with this token (any more)")]
    LockLost {
        /// The key.
        key: String,
    },
    /// The key belongs to the cluster itself.
    #[error("keys under \"cluster/\" are reserved")]
    ReservedKey,
    /// The node is a member; heartbeats over HTTP are for nodes registered over HTTP.
    #[error("the node is a member of the cluster and needs no heartbeat over HTTP")]
    NodeIsMember,
    /// No such join token.
    #[error("no join token has this id")]
    TokenNotFound,
    /// The token does not admit a node.
    #[error("the join token is not valid: {why}")]
    TokenInvalid {
        /// Why: unknown, expired, used up.
        why: String,
    },
    /// The node was removed from the cluster, or never belonged to it.
    #[error("this node does not belong to the cluster (any more)")]
    NotAMember,
    /// Removing the node would leave a group without a quorum.
    #[error("removing this node would lose the quorum of {groups} groups")]
    WouldLoseQuorum {
        /// How many groups.
        groups: u64,
    },
    /// Nobody else could lead.
    #[error("no other node could lead")]
    NoOtherCandidate,
    /// No node is in the region.
    #[error("region: no node of this cluster is in region {region:?}")]
    UnknownRegion {
        /// The region.
        region: String,
    },
    /// Tenants do not move between regions yet.
    #[error("region: the tenant is in region {region:?} and cannot be moved by this version")]
    CannotMove {
        /// Where it is.
        region: String,
    },
    /// The table of this kind of thing is full.
    #[error("at most {limit} {what} are kept")]
    TooMany {
        /// Of what.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// The cluster has an admin token, and it is another one.
    #[error("the cluster has another admin token")]
    OtherAdminToken,
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// Accepted, nothing has begun.
    Pending,
    /// Under way.
    Running,
    /// Every step is completed.
    Completed,
    /// A step failed for good.
    Failed,
    /// Stopped by a client, or with its tenant.
    Cancelled,
}

impl RunStatus {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Running, Self::Completed, Self::Failed, Self::Cancelled];

    /// The name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing can change any more.
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl std::fmt::Display for RunStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
