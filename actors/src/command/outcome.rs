//! What a command came to. Refusals are outcomes too: every replica reaches the same one.

use serde::{Deserialize, Serialize};

use crate::command::Refusal;
use crate::domain::ids::{JobId, NodeId, RunId, TenantId, TokenId};
use crate::domain::lock::LockView;
use crate::domain::tenant::TenantRecord;
use crate::domain::time::Timestamp;

/// The answer of a state machine to one command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(strum::VariantNames))]
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
    pub const fn needs_completion_record(&self) -> bool {
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
