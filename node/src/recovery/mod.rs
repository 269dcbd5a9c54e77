//! Recovery by force: one member goes on alone, as another cluster, with what it has (decision 21).
//!
//! A cluster that has lost more members than it can bear has no quorum, and never will have one again.
//! What is left of it on one member may lack entries that were acknowledged: no program can know that,
//! so a person decides, and is told what may be lost.
//!
//! # What is written, in this order
//!
//! Each step is durable before the next begins.
//!
//! 1. *The plan* ([`plan`]), `identity/recovery.json`: everything that is chosen by chance or by what
//!    the log holds now. From here on the directory does not start as a node: its groups are about to
//!    have one voter each, and under its former identity that would be two clusters of one name.
//! 2. *The log.* Each group that has a replica here gets a membership of this node alone. Group 0 gets
//!    the command [`Recover`] behind it, and each tenant what that command makes of it. So all of it is
//!    applied before the node, when it starts again, is anything else than starting.
//! 3. *The identity*, with the new cluster's id, authority and certificate. After the log, so that no
//!    identity of the new cluster stands over a log of the former one.
//! 4. *The report*, a file beside the others. Before the end, so that there is no recovery without one.
//! 5. *The plan is removed.* This is the moment at which the recovery has happened.
//!
//! Whatever interrupts it, the same command does all the steps again, and each comes to the same: the
//! plan says at which positions, and what stood there before is looked up only below these.
//!
//! # Why no former member disturbs
//!
//! The new cluster has an authority of its own. A former member's certificate is not of it, and this
//! node's new one is not of the former authority. So neither calls the other; the former member is told
//! why (`transport/src/quic/tls.rs`).
//!
//! # Not done
//!
//! Several survivors are not compared: whoever recovers chooses the one with the most, by the positions
//! that the command tells before it is forced. What one group has and another lacks is not brought
//! together: a tenant that group 0 does not know any more stays on the disk and is in the report.

mod plan;
mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shiioo_actors::command::{
    COMMAND_VERSION, Command, Envelope, Outcome, Recover, SetTenant, SystemCommand, TenantCommand,
};
use shiioo_actors::domain::ids::{GroupId, Position, StateMachineId};
use shiioo_actors::domain::membership::Authority;
use shiioo_actors::domain::secret::SecretBytes;
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::ports::{StoreError, Stores as _};
use shiioo_actors::state::system::SystemState;
use shiioo_actors::state::{RowBuffer, StateMachine as _};
use shiioo_storage::disk::{Disk, PreviewDisk, store_error, write_durably};
use shiioo_storage::{FileStores, StoppedLog, StoresConfig};
use uuid::Uuid;

use crate::identity::{IDENTITY_FILE, Identity, IdentityError};
use crate::node::StartError;
use crate::node::data_dir;
use crate::seams::NodeSeams;
use plan::{Plan, PlannedGroup};
pub(crate) use report::{Report, some};

/// Tells why nothing was recovered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecoverError {
    /// The directory is no member's.
    #[error(
        "{dir} is not the data directory of a member: there is no {IDENTITY_FILE}, or its log was \
         never begun; name the directory of a node that was a member with --data-dir", dir = .0.display()
    )]
    NoMember(PathBuf),
    /// The node has not come so far that it knows itself.
    #[error(
        "this node had not caught up with its cluster: its log does not say that it is a member; \
         recover on another that is left"
    )]
    NotCaughtUp,
    /// Nobody else is needed.
    #[error(
        "there is nothing to recover: this node is the only voter of every group that it has, and \
         needs nobody else; start it"
    )]
    AlreadyAlone,
    /// The log has lost its end.
    #[error(
        "the files of {part} go up to entry {held} of group {group}, and the log ends at {last}: the \
         disk has lost what was written last; nothing was changed; recover on another that is left, or \
         remove those files to go on without them"
    )]
    FilesAhead {
        /// Whose files.
        part: StateMachineId,
        /// Its group.
        group: GroupId,
        /// Where they end.
        held: Position,
        /// Where the log ends.
        last: Position,
    },
    /// A node uses the directory.
    #[error(transparent)]
    InUse(#[from] StartError),
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The data cannot be read or written.
    #[error("the data cannot be used: {0}")]
    Store(#[from] StoreError),
}

/// Reads what a forced recovery of a data directory would do and, where it `is_forced`, does it. The
/// report is on disk then.
pub(crate) async fn recover(
    dir: &Path,
    seams: &NodeSeams,
    is_forced: bool,
) -> Result<Report, RecoverError> {
    let disk = &*seams.disk;
    let no_member = || RecoverError::NoMember(dir.to_owned());
    let look = disk.exists(IDENTITY_FILE);
    if !look.map_err(|error| store_error(format!("look for {IDENTITY_FILE}"), error))? {
        return Err(no_member());
    }
    let _lock = data_dir::hold(dir, disk)?;
    let identity = Identity::load(disk)?.ok_or_else(no_member)?;
    let log_id = identity.log_id.ok_or_else(no_member)?;
    let survey = Survey::of(seams, &identity, log_id).await?;
    if survey.plan.groups.iter().all(|group| group.voters == [identity.raft_id]) {
        return Err(RecoverError::AlreadyAlone);
    }
    if !is_forced {
        return Ok(survey.report);
    }
    let Survey { report, .. } = survey.carry_out(seams, identity, log_id).await?;
    write_durably(disk, &report.file(), &report.to_json())?;
    Plan::remove(disk)?;
    Ok(report)
}

/// Has a node that is alone go on as another cluster, because it may have lost what it has promised. What is
/// lost is reported by the caller, which holds the data directory. Returns the ids of both clusters.
pub(crate) async fn go_on_as_another(
    seams: &NodeSeams,
    identity: Identity,
    log_id: Uuid,
) -> Result<(Uuid, Uuid), RecoverError> {
    let survey = Survey::of(seams, &identity, log_id).await?;
    let survey = survey.carry_out(seams, identity, log_id).await?;
    Plan::remove(&*seams.disk)?;
    Ok(survey.report.clusters())
}

impl Survey {
    /// Writes what is planned, up to the new identity. Each step is durable before the next.
    async fn carry_out(
        mut self,
        seams: &NodeSeams,
        identity: Identity,
        log_id: Uuid,
    ) -> Result<Self, RecoverError> {
        let Self { plan, told, begun, .. } = &mut self;
        let disk = &*seams.disk;
        plan.store(disk)?;
        let no_member = || RecoverError::NoMember(PathBuf::from(IDENTITY_FILE));
        let region = &identity.region;
        let log = StoppedLog::open(Arc::clone(&seams.disk), seams.executor.clone(), log_id, region);
        let log = log.await?;
        for (group, commands) in std::mem::take(told) {
            let PlannedGroup { term, last, .. } = *plan.group(group).ok_or_else(no_member)?;
            log.go_on_alone(group, identity.raft_id, term, Some(last), commands).await?;
        }
        // Here, and not when the node starts: it may have left such a group, and would wait for the others
        // before it led it.
        for group in begun {
            log.begin_alone(*group, identity.raft_id).await?;
        }
        log.close().await?;
        plan.identity(identity)?.store(disk)?;
        Ok(self)
    }
}

/// Holds what a recovery finds and is to write. It is the same before, during and after it.
struct Survey {
    plan: Plan,
    report: Report,
    /// The commands for each group.
    told: BTreeMap<GroupId, Vec<Envelope>>,
    /// The groups that begin anew, empty.
    begun: Vec<GroupId>,
}

impl Survey {
    async fn of(
        seams: &NodeSeams,
        identity: &Identity,
        log_id: Uuid,
    ) -> Result<Self, RecoverError> {
        let preview: Arc<dyn Disk> = Arc::new(PreviewDisk(Arc::clone(&seams.disk)));
        let (executor, region) = (seams.executor.clone(), &identity.region);
        let log = StoppedLog::open(Arc::clone(&preview), executor.clone(), log_id, region).await?;
        let plan = match Plan::load(&*seams.disk)? {
            Some(begun) => begun,
            None => Plan::make(seams, identity, log.groups().await?)?,
        };
        let system = plan.group(GroupId::SYSTEM).ok_or(RecoverError::NotCaughtUp)?.clone();
        let config = StoresConfig { log: Some(log_id), ..StoresConfig::default() };
        let stores = FileStores::open_with(preview, executor, region, config).await?;
        let mut state = state_at(&stores, &log, system.last).await?;
        check_files(&stores, &plan, &state).await?;
        let report = Report::of(&plan, identity, &state, &stores.tenants()?);
        let command =
            envelope(plan.at, Command::System(SystemCommand::Recover(plan.command(identity)?)));
        // Behind the membership, which comes first.
        let position = Position { term: system.term, index: system.last.index + 2 };
        if state.apply(position, &command).0 != Outcome::Done {
            return Err(RecoverError::NotCaughtUp);
        }
        let mut told: BTreeMap<GroupId, Vec<Envelope>> =
            plan.groups.iter().map(|group| (group.group, Vec::new())).collect();
        told.entry(GroupId::SYSTEM).or_default().push(command);
        for (tenant, entry) in state.tenants() {
            let Some(of_group) = told.get_mut(&entry.group) else { continue };
            let set = SetTenant { version: entry.version, record: entry.record.clone() };
            let command = TenantCommand::Set(set);
            let command = Command::Tenant { tenant: *tenant, epoch: entry.epoch, command };
            of_group.push(envelope(plan.at, command));
        }
        let begun = state.groups().keys().filter(|group| plan.group(**group).is_none());
        let begun = begun.copied().collect();
        Ok(Self { plan, report, told, begun })
    }
}

/// Refuses files that are ahead of the log: what is appended behind its end would stand at positions that
/// they hold already, and be skipped.
async fn check_files(
    stores: &FileStores,
    plan: &Plan,
    state: &SystemState,
) -> Result<(), RecoverError> {
    let mut parts = Vec::new();
    if stores.exists(StateMachineId::System)? {
        parts.push((StateMachineId::System, GroupId::SYSTEM));
    }
    for tenant in stores.tenants()? {
        let group = state.tenant(tenant).map(|entry| entry.group);
        parts.extend(group.map(|group| (StateMachineId::Tenant(tenant), group)));
    }
    for (part, group) in parts {
        let Some(PlannedGroup { last, .. }) = plan.group(group) else { continue };
        // A tenant whose files cannot be read is out of service when the node runs: that is told then.
        let held = match stores.open(part).await {
            Ok(store) => store.position(),
            Err(_) if part != StateMachineId::System => None,
            Err(error) => return Err(error.into()),
        };
        if let Some(held) = held.filter(|held| held > last) {
            return Err(RecoverError::FilesAhead { part, group, held, last: *last });
        }
    }
    Ok(())
}

/// Returns the control plane as it was at a position: its files, and what the log has beyond them.
async fn state_at(
    stores: &FileStores,
    log: &StoppedLog,
    upto: Position,
) -> Result<SystemState, StoreError> {
    let mut at = None;
    let mut rows = RowBuffer::new(None);
    if stores.exists(StateMachineId::System)? {
        let store = stores.open(StateMachineId::System).await?;
        at = store.position();
        rows = RowBuffer::new(Some(store));
    }
    let mut state = SystemState::load(&rows)?;
    for (position, envelope) in log.commands(GroupId::SYSTEM, at, upto).await? {
        // Answers and effects were for those who asked then.
        let _ = state.apply(position, &envelope);
    }
    Ok(state)
}

const fn envelope(at: Timestamp, command: Command) -> Envelope {
    Envelope { version: COMMAND_VERSION, at, term: None, cause: None, rpc_id: None, command }
}

impl Plan {
    /// Makes the command that group 0 is given.
    fn command(&self, identity: &Identity) -> Result<Recover, IdentityError> {
        let authority = Authority {
            cluster: self.cluster_id,
            certificate: self.authority()?,
            key: SecretBytes::new(self.authority_key()?),
        };
        let groups = self.groups.iter().map(|group| group.group);
        let groups = groups.filter(|group| *group != GroupId::SYSTEM).collect();
        Ok(Recover { authority, raft_id: identity.raft_id, groups })
    }
}
