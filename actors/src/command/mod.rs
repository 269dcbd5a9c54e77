//! What is replicated: commands, and the envelope they travel in.
//!
//! Everything that changes state is one of these, with every id and moment in it that `apply`
//! needs: the proposer makes them, so that `apply` is a function of its state and the entry alone.
//! The encoding is `codec`'s; [`Envelope::version`] says which shape of [`Command`] is inside.

mod groups;
mod jobs;
mod locks;
mod members;
mod moves;
mod nodes;
mod outcome;
mod refusal;
mod request;
mod room;
mod runs;
mod steps;
mod tenants;
mod tokens;
mod workflows;

use std::fmt;

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

pub use groups::{AssignReplicas, PlaceGroups};
pub use jobs::{CreateJob, JobCreated};
pub use locks::LockCommand;
pub use members::{
    AdmitMember, DrainMember, Found, LeaderElected, MemberAdmitted, MemberOffline, Recover,
};
pub use moves::{MoveStep, MoveTenant, MovedPiece, MovedRow, StepMove};
pub use nodes::{NodeRegistered, RegisterNode, RemoveNode};
pub use outcome::Outcome;
pub use refusal::Refusal;
pub use request::{Answer, Request, TenantCreated};
pub use runs::{CancelRun, RunStarted, StartRun, WorkflowSource};
pub use steps::{RecordStepResult, StepDue, StepResult};
pub use tenants::{
    ConfirmTenant, CreateTenant, DeleteTenant, SetTenant, TenantKnown, TenantWritten, UpdateTenant,
};
pub use tokens::{CreateJoinToken, RemoveJoinToken, SetAdminToken, TokenCreated};
pub use workflows::{DeleteWorkflow, PutWorkflow, WorkflowWritten};

use crate::domain::codec::{self, DecodeError};
use crate::domain::ids::{Epoch, TenantId};
use crate::domain::membership::Member;
use crate::domain::time::{Pause, Timestamp};

/// The rules that this program's commands are applied by. 2: events have checksums; inputs, outputs and
/// definitions count as storage; group 0's tables are bounded in bytes. 3: replicas of tenant groups are
/// assigned. 4: metadata of locks counts as storage. 5: what a tenant holds in memory is bounded, clusters are
/// recovered by force, replicas are compared. 6: tenants move. 7: live runs are written in parts. Each version
/// only adds kinds of commands to those of the one before.
pub const COMMAND_VERSION: u16 = 7;

/// From this version on the events that come of a command have checksums. Commands that are in logs
/// already write what they wrote before: all replicas hold the same bytes.
pub const EVENTS_CHECKED_FROM: u16 = 2;

/// From this version of a command on, the tables of group 0 are bounded in bytes.
pub const BOUNDS_TABLES_FROM: u16 = 2;

/// From this version of a command on, a member may leave that has replicas of tenant groups, where
/// others can have them.
pub const MOVES_REPLICAS_FROM: u16 = 3;

/// From this version of a command on, inputs, outputs and definitions count when the storage quota
/// is looked at. What was accepted without them is accepted again when it is replayed.
pub const COUNTS_PAYLOADS_FROM: u16 = 2;

/// From this version of a command on, metadata of locks counts as well.
pub const COUNTS_LOCKS_FROM: u16 = 4;

/// From this version of a command on, what a tenant holds in memory is bounded: a run or a workflow that is
/// too much is refused, a step whose output is too much fails.
pub const BOUNDS_HELD_BYTES_FROM: u16 = 5;

/// From this version of a command on, the long parts of the runs that it starts have rows of their own.
pub const LAYS_IN_PARTS_FROM: u16 = 7;

/// From this version of a command on, a change of its region moves a tenant.
pub const MOVES_TENANTS_FROM: u16 = 6;

/// One replicated entry.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// Shape of `command`; [`COMMAND_VERSION`] when this program wrote it.
    pub version: u16,
    /// When it was proposed, by the proposer's wall clock: what `state/clock.rs` makes of it.
    pub at: Timestamp,
    /// For commands born of a timer or an effect: the term of the leader that armed it. In an
    /// entry of any other term the command does nothing.
    pub term: Option<u64>,
    /// For commands a client asked for: who did.
    pub cause: Option<Cause>,
    /// For commands that a node may send again when it does not hear the outcome.
    pub rpc_id: Option<RpcId>,
    /// What to do.
    pub command: Command,
}

/// Names one request of one incarnation of a node, so that a second attempt at it finds the outcome
/// of the first. After C. Lee et al., "Implementing Linearizability at Large Scale and Low Latency"
/// (RIFL, SOSP 2015): outcomes are kept until the node that asks says it has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RpcId {
    /// The incarnation of the node, by chance: a restarted node counts anew.
    pub incarnation: u64,
    /// The request.
    pub sequence: u64,
    /// Every request before this one has been answered, and will not be asked again.
    pub first_incomplete: u64,
}

impl Envelope {
    /// Decodes an envelope, of this or an earlier version: a later one may have another shape.
    ///
    /// # Errors
    /// When `bytes` hold none, or one of a later version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::check_version(bytes)?;
        codec::decode(bytes)
    }

    /// Looks at the version alone, which every envelope begins with.
    ///
    /// # Errors
    /// As [`Envelope::decode`], as far as can be told from the version.
    pub fn check_version(bytes: &[u8]) -> Result<(), DecodeError> {
        let version: u16 = codec::decode_first(bytes)?;
        if version <= COMMAND_VERSION {
            return Ok(());
        }
        Err(DecodeError::TooNew {
            what: "command",
            version: version.into(),
            known: COMMAND_VERSION.into(),
        })
    }

    /// The pause that it tells of.
    pub const fn pause(&self) -> Option<Pause> {
        match &self.command {
            Command::System(SystemCommand::TimePassed(pause))
            | Command::Tenant { command: TenantCommand::TimePassed(pause), .. } => Some(*pause),
            _ => None,
        }
    }

    /// Whether each replica is to note what it holds once it has applied this.
    pub const fn asks_for_digest(&self) -> bool {
        matches!(self.command, Command::Tenant { command: TenantCommand::Compare, .. })
    }
}

/// Names the kind of command alone: commands hold what tenants keep to themselves, as in headers of
/// `http` steps, and the log of the consensus library shows every entry at its finer levels.
impl fmt::Display for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.command)
    }
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, at, term, cause: _, rpc_id: _, command } = self;
        write!(f, "Envelope({command:?}, version {version}, at {}, term {term:?})", at.0)
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(command) => write!(f, "{command:?}"),
            Self::Tenant { tenant, epoch, command } => {
                write!(f, "{command:?} of tenant {tenant} in epoch {epoch:?}")
            }
        }
    }
}

/// The name of the kind.
impl fmt::Debug for SystemCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.into())
    }
}

/// The name of the kind.
impl fmt::Debug for TenantCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.into())
    }
}

/// Who asked for a command, for the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Kind and name of the credential: `anonymous`, `admin`.
    pub who: String,
    /// The request id, as in logs and in `X-Request-Id`.
    pub request_id: String,
}

/// A command to one state machine.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// To the control plane, in group 0.
    System(SystemCommand),
    /// To a tenant, in its group.
    Tenant {
        /// Whose.
        tenant: TenantId,
        /// The epoch of the tenant that the proposer knew.
        epoch: Epoch,
        /// What to do.
        command: TenantCommand,
    },
}

/// Remembers the outcome of a creating call under the client's key. Both are hashes: the key of
/// scope (tenant or cluster, method, path) and header, the body of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// First 16 bytes of SHA-256 over scope and key.
    pub key: [u8; 16],
    /// First 16 bytes of SHA-256 over the body.
    pub body: [u8; 16],
}

/// Changes to the control plane.
#[derive(Clone, PartialEq, Serialize, Deserialize, IntoStaticStr)]
#[cfg_attr(test, derive(strum::VariantNames))]
pub enum SystemCommand {
    /// Founds the cluster, with its first member. A second founding does nothing.
    Found(Found),
    /// Lets a node in and gives it an id in Raft groups.
    AdmitMember(AdmitMember),
    /// A member started, perhaps at another address than before.
    RegisterMember(Member),
    /// A member said goodbye.
    MemberOffline(MemberOffline),
    /// A member is to lose its vote and then be removed.
    DrainMember(DrainMember),
    /// A new join token.
    CreateJoinToken(CreateJoinToken),
    /// Revokes a join token.
    RemoveJoinToken(RemoveJoinToken),
    /// A node that heartbeats over HTTP.
    RegisterNode(RegisterNode),
    /// Forgets a node registered over HTTP, or a member that has been drained.
    RemoveNode(RemoveNode),
    /// A node leads the system group in the entry's own term.
    LeaderElected(LeaderElected),
    /// The initial members of new tenant groups; exactly these initialise them.
    PlaceGroups(PlaceGroups),
    /// A new tenant.
    CreateTenant(CreateTenant),
    /// A change to a tenant.
    UpdateTenant(UpdateTenant),
    /// Deletes a tenant, leaving a tombstone.
    DeleteTenant(DeleteTenant),
    /// The tenant's group holds this version of the record.
    ConfirmTenant(ConfirmTenant),
    /// A lock of the cluster's key space.
    Lock(LockCommand),
    /// Nothing happened for a while, which the leader measured with its monotonic clock: what is
    /// kept for a time has become so much older.
    TimePassed(Pause),
    /// Sets the cluster's admin token, where it has none.
    SetAdminToken(SetAdminToken),
    /// Says which members are to have a replica of a tenant group.
    AssignReplicas(AssignReplicas),
    /// Goes on with one member alone, as another cluster.
    Recover(Recover),
    /// The next step of a tenant's move to another group.
    StepMove(StepMove),
}

/// Changes to a tenant.
#[derive(Clone, PartialEq, Serialize, Deserialize, IntoStaticStr)]
#[cfg_attr(test, derive(strum::VariantNames))]
pub enum TenantCommand {
    /// What group 0 decided about the tenant; creates the tenant's state when there is none.
    /// Idempotent: an older `(epoch, version)` than the one held does nothing.
    Set(SetTenant),
    /// Starts a run.
    StartRun(StartRun),
    /// Keeps a named workflow with its run as a job.
    CreateJob(CreateJob),
    /// Stops a run.
    CancelRun(CancelRun),
    /// A named workflow, new or in a new version.
    PutWorkflow(PutWorkflow),
    /// Forgets a named workflow; runs keep the version they started with.
    DeleteWorkflow(DeleteWorkflow),
    /// What became of one attempt of a step. Recorded once: a second result does nothing.
    StepResult(RecordStepResult),
    /// The moment a step waited for has come: its wait is over, or its retry is due.
    StepDue(StepDue),
    /// A lock of the tenant's own key space.
    Lock(LockCommand),
    /// Nothing happened for a while, which the leader measured with its monotonic clock: what is
    /// kept for a time has become so much older.
    TimePassed(Pause),
    /// Changes nothing, not even the clock: each replica notes what it holds at the entry's position, to be
    /// compared with the others.
    Compare,
    /// A step of a move between this group and another. In the epoch of the attempt.
    Move(MoveTenant),
}

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;
