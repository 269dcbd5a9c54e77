//! What a command came to. Refusals are outcomes too: every replica reaches the same one.

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::command::{
    JobCreated, MemberAdmitted, NodeRegistered, Refusal, RunStarted, TenantKnown, TenantWritten,
    TokenCreated, WorkflowWritten,
};
use crate::domain::lock::LockView;

/// The answer of a state machine to one command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, IntoStaticStr)]
#[cfg_attr(test, derive(strum::VariantNames))]
pub enum Outcome {
    /// The command did nothing, by its own rules (late timer, second result, old version), or the
    /// entry held no command.
    Ignored,
    /// The state machine refused it; nothing changed.
    Refused(Refusal),
    /// A tenant was created, changed or found under its idempotency key.
    Tenant(TenantKnown),
    /// A node was registered or found under its idempotency key.
    Node(NodeRegistered),
    /// A node was admitted, now or before.
    Admitted(MemberAdmitted),
    /// A join token was made, or found under its idempotency key.
    Token(TokenCreated),
    /// Done, with nothing to tell.
    Done,
    /// A run was started or found under its idempotency key.
    Run(RunStarted),
    /// A job was created or found under its idempotency key.
    Job(JobCreated),
    /// A named workflow was written.
    Workflow(WorkflowWritten),
    /// The lock is the caller's.
    Locked(LockView),
    /// The lock is another's.
    HeldByOther(LockView),
    /// Whether the release ended a hold.
    Released(bool),
    /// A tenant was created or changed. The record is here, for what group 0 says of the tenant when
    /// the answer is written may be something else already.
    TenantSet(TenantWritten),
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
            Self::Tenant(_)
            | Self::TenantSet(_)
            | Self::Node(_)
            | Self::Admitted(_)
            | Self::Done
            | Self::Run(_)
            | Self::Job(_)
            | Self::Workflow(_)
            | Self::Token(_)
            | Self::Released(true) => true,
        }
    }
}
