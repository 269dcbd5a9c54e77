//! How a node that starts makes itself known to its cluster, and waits for it.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::command::{Found, Outcome, SetAdminToken, SystemCommand};
use crate::domain::ids::RaftId;
use crate::domain::membership::Member;
use crate::domain::region::Region;
use crate::domain::secret::SecretHash;
use crate::handles::Cluster;
use crate::node::{Founding, StartError};
use crate::ports::Leadership;
use crate::ports::error::CallError;
use crate::services::control::Control;
use crate::state::system::SystemState;

/// How long one attempt to make the node known to its cluster may take.
const REGISTER_ATTEMPT: Duration = Duration::from_secs(2);
/// A node that waits for its cluster says so this often.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Wait between two attempts.
const REGISTER_RETRY: Duration = Duration::from_millis(10);

/// A member looks this often whether the cluster still has it right.
const KEEP_EVERY: Duration = Duration::from_secs(2);

/// What a node is made known with.
pub(crate) struct Registrar<'a> {
    pub(crate) control: &'a Control,
    /// The rest of the node, which knows what is waited for.
    pub(crate) cluster: &'a Cluster,
    /// Of the system group.
    pub(crate) leadership: watch::Receiver<Leadership>,
}

/// Founds the cluster where it is new, makes the node known, and waits until its region has tenant
/// groups.
pub(crate) async fn register(
    registrar: &Registrar<'_>,
    member: Member,
    founding: Option<Founding>,
    admin_token: Option<SecretHash>,
) -> Result<(), StartError> {
    let (region, raft_id) = (member.region.clone(), member.raft_id);
    // Before the cluster is founded, so that nobody gets in while its door is open to loopback.
    if let Some(hash) = admin_token {
        set_admin_token(registrar, hash).await?;
    }
    if let Some(Founding { authority, public_key, secret_hash }) = founding {
        let member = member.clone();
        let found = SystemCommand::Found(Found { authority, member, public_key, secret_hash });
        insist(registrar, found).await?;
    }
    match insist(registrar, SystemCommand::RegisterMember(member)).await {
        Ok(Outcome::Refused(_)) => return Err(StartError::Removed),
        Ok(_) => tracing::debug!("registered"),
        // A full disk keeps nobody from reading: where it is now the cluster knows from before, or
        // hears when there is room.
        Err(StartError::Register(CallError::DiskFull)) if is_known(registrar, raft_id).await? => {
            tracing::warn!("the disk is full: this node starts without telling where it is now");
        }
        Err(error) => return Err(error),
    }
    await_groups(registrar, region).await
}

/// Waits until the region has tenant groups: whoever leads the cluster places them.
async fn await_groups(registrar: &Registrar<'_>, region: Region) -> Result<(), StartError> {
    loop {
        let wanted = region.clone();
        let is_placed = move |state: &SystemState| {
            state.groups().values().any(|placement| placement.region == wanted)
        };
        if look_up(registrar, is_placed).await? {
            return Ok(());
        }
        // It is for this node to place them, and its disk takes nothing.
        if registrar.leadership.borrow().here && !registrar.cluster.log.has_room() {
            return Err(StartError::Register(CallError::DiskFull));
        }
        tokio::time::sleep(REGISTER_RETRY).await;
    }
}

/// Sets the cluster's admin token, or finds that it is this one already.
async fn set_admin_token(registrar: &Registrar<'_>, hash: SecretHash) -> Result<(), StartError> {
    let outcome =
        match insist(registrar, SystemCommand::SetAdminToken(SetAdminToken { hash })).await {
            // A full disk keeps nobody from reading: the cluster may have its token from before.
            Err(StartError::Register(CallError::DiskFull)) => {
                let look = |state: &SystemState| state.admin_token();
                match look_up(registrar, look).await? {
                    Some(known) if known == hash => return Ok(()),
                    Some(_) => return Err(StartError::OtherAdminToken),
                    None => return Err(StartError::Register(CallError::DiskFull)),
                }
            }
            outcome => outcome?,
        };
    match outcome {
        Outcome::Refused(_) => Err(StartError::OtherAdminToken),
        _ => Ok(()),
    }
}

/// Whether the cluster knows this member from an earlier life.
async fn is_known(registrar: &Registrar<'_>, raft_id: RaftId) -> Result<bool, StartError> {
    let is_it = move |state: &SystemState| state.members().any(|(_, _, it)| it.raft_id == raft_id);
    look_up(registrar, is_it).await
}

async fn look_up<T: Send + 'static>(
    registrar: &Registrar<'_>,
    look: impl FnOnce(&SystemState) -> T + Clone + Send + 'static,
) -> Result<T, StartError> {
    loop {
        let deadline = Instant::now() + REGISTER_ATTEMPT;
        match registrar.control.read_linearizable(deadline, look.clone()).await {
            Ok(found) => return Ok(found),
            Err(CallError::Stopping) => return Err(StartError::Register(CallError::Stopping)),
            // The quorum may have gone at this very moment: it is waited for, as everywhere here.
            Err(error) => tracing::debug!(%error, "not looked up yet"),
        }
        tokio::time::sleep(REGISTER_RETRY).await;
    }
}

/// Proposes until there is an outcome: at its start a node waits for its cluster. The disk that is
/// full may be that of another node, which leads; then it is waited for, too.
async fn insist(registrar: &Registrar<'_>, command: SystemCommand) -> Result<Outcome, StartError> {
    let mut tell_next = Instant::now() + REGISTER_ATTEMPT;
    loop {
        let deadline = Instant::now() + REGISTER_ATTEMPT;
        match registrar.control.send(deadline, command.clone()).await {
            Ok(outcome) => return Ok(outcome),
            Err(CallError::Stopping) => return Err(StartError::Register(CallError::Stopping)),
            Err(CallError::DiskFull) if registrar.leadership.borrow().here => {
                return Err(StartError::Register(CallError::DiskFull));
            }
            Err(error) if Instant::now() >= tell_next => {
                tell_next = Instant::now() + TELL_EVERY;
                let why = registrar.cluster.not_ready().await.join("; ");
                tracing::warn!(%error, %why, "this node is not part of its cluster yet");
            }
            Err(error) => tracing::debug!(%error, "not registered yet"),
        }
        tokio::time::sleep(REGISTER_RETRY).await;
    }
}

/// Keeps a member known as it is: tells the cluster again what it has wrong, as after another
/// process with a copy of its data directory was there for a while. Never returns.
pub(crate) async fn keep_known(control: Control, member: Member) {
    let mut looks = tokio::time::interval(KEEP_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let (deadline, own) = (Instant::now() + REGISTER_ATTEMPT, member.clone());
        let is_right = move |state: &SystemState| {
            let record = state.nodes().get(&own.node);
            record.is_none_or(|record| {
                record
                    .member
                    .as_ref()
                    .is_some_and(|known| !known.offline && known.node_addr == own.node_addr)
                    && record.address == own.api_addr
            })
        };
        // One that has been removed is told so by its log.
        if control.read(deadline, is_right).await.unwrap_or(true) {
            continue;
        }
        tracing::info!("the cluster has this node elsewhere, or stopped: telling it again");
        let register = SystemCommand::RegisterMember(member.clone());
        if let Err(error) = control.send(deadline, register).await {
            tracing::debug!(%error, "not told yet");
        }
    }
}
