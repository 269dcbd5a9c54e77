//! Why an operation is refused.

use serde::{Deserialize, Serialize};

use crate::domain::lock::LockKey;
use crate::domain::region::Region;
use crate::domain::run::RunStatus;
use crate::domain::tenant::Quota;

/// Why a state machine, or an actor before it, refused an operation. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(test, derive(strum::VariantNames))]
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
        key: LockKey,
    },
    /// The tenant is suspended.
    #[error(
        "the tenant is suspended: only reads, cancellations, and renewals and releases of locks are allowed"
    )]
    TenantSuspended,
    /// The tenant is disabled.
    #[error(
        "the tenant is disabled: only reads, cancellations, and renewals and releases of locks are allowed"
    )]
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
    #[error(
        "{limit} idempotency keys of the last 24 h are kept, and no more: a call with a new one is refused"
    )]
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
        key: LockKey,
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
        region: Region,
    },
    /// Said by versions that could not move tenants.
    #[error("region: the tenant is in region {region:?} and cannot be moved by this version")]
    CannotMove {
        /// Where it is.
        region: Region,
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
    /// The tenant would hold more in memory than it may.
    #[error(
        "no room in memory: named workflows and runs that have not ended hold {used} of the {limit} bytes \
         that they may: try again when runs have ended, delete workflows, or send less"
    )]
    MemoryLimit {
        /// The most bytes.
        limit: u64,
        /// What is held.
        used: u64,
    },
    /// The tenant is on its way to another region, or what it left behind is still being removed.
    #[error(
        "region: a move of this tenant to region {region:?} is not over: try again when it is, or name the \
         tenant's present region to call the move off"
    )]
    Moving {
        /// The region it moves to, or did not come to.
        region: Region,
    },
}
