//! Requests: commands that a client asks for, each with the answer that belongs to it.
//!
//! Outcomes of all commands are one enum, for they are replicated and kept. Whoever asks for a
//! command knows which kind of outcome it can come to: this file is the one place that says so.

use super::{
    CancelRun, CreateJob, CreateJoinToken, CreateTenant, DeleteTenant, DeleteWorkflow, DrainMember,
    JobCreated, NodeRegistered, Outcome, PutWorkflow, RegisterNode, RemoveJoinToken, RemoveNode,
    RunStarted, StartRun, SystemCommand, TenantCommand, TenantKnown, TenantWritten, TokenCreated,
    UpdateTenant, WorkflowWritten,
};
use crate::domain::lock::LockView;

/// What a request is answered with when it is not refused.
pub trait Answer: Sized {
    /// Reads the answer from an outcome; `None` where the outcome belongs to other requests.
    fn read(outcome: Outcome) -> Option<Self>;
}

/// A command of kind `C` that a client asks for.
pub trait Request<C>: Into<C> {
    /// Its answer.
    type Answer: Answer;
}

/// Answers a request that has nothing to tell.
impl Answer for () {
    fn read(outcome: Outcome) -> Option<Self> {
        (outcome == Outcome::Done).then_some(())
    }
}

/// Answers the creation of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantCreated {
    /// The call made it.
    Now(TenantWritten),
    /// A call with the same idempotency key had made it before.
    Before(TenantKnown),
}

impl Answer for TenantCreated {
    fn read(outcome: Outcome) -> Option<Self> {
        match outcome {
            Outcome::TenantSet(written) => Some(Self::Now(written)),
            Outcome::Tenant(known) => Some(Self::Before(known)),
            _ => None,
        }
    }
}

/// Reads each of these answers from one kind of outcome.
macro_rules! answers {
    ($($answer:ty: $outcome:ident,)+) => {$(
        impl Answer for $answer {
            fn read(outcome: Outcome) -> Option<Self> {
                match outcome {
                    Outcome::$outcome(answer) => Some(answer),
                    _ => None,
                }
            }
        }
    )+};
}

answers! {
    TenantKnown: Tenant,
    TenantWritten: TenantSet,
    NodeRegistered: Node,
    TokenCreated: Token,
    RunStarted: Run,
    JobCreated: Job,
    WorkflowWritten: Workflow,
    LockView: Locked,
    bool: Released,
}

/// Gives each of these commands its kind and its answer.
macro_rules! requests {
    ($kind:ident { $($command:ident -> $answer:ty,)+ }) => {$(
        impl From<$command> for $kind {
            fn from(command: $command) -> Self {
                Self::$command(command)
            }
        }

        impl Request<$kind> for $command {
            type Answer = $answer;
        }
    )+};
}

requests! {
    SystemCommand {
        CreateTenant -> TenantCreated,
        UpdateTenant -> TenantWritten,
        DeleteTenant -> TenantKnown,
        RegisterNode -> NodeRegistered,
        RemoveNode -> (),
        DrainMember -> (),
        CreateJoinToken -> TokenCreated,
        RemoveJoinToken -> (),
    }
}

requests! {
    TenantCommand {
        StartRun -> RunStarted,
        CreateJob -> JobCreated,
        CancelRun -> (),
        PutWorkflow -> WorkflowWritten,
        DeleteWorkflow -> (),
    }
}
