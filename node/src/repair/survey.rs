//! Looks at everything that a lone node has, over a view of the disk that changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use shiioo_actors::domain::ids::{GroupId, Position, StateMachineId};
use shiioo_actors::ports::{StoreError, Stores as _};
use shiioo_actors::state::system::SystemState;
use shiioo_actors::state::{RowBuffer, StateMachine as _};
use shiioo_storage::disk::{Disk, PreviewDisk, store_error};
use shiioo_storage::{
    DamagedLog, FileStores, Held, RepairedGroup, StoppedLog, StoresConfig, has_log,
};
use uuid::Uuid;

use super::report::{Damage, GroupLoss, LogLoss, Report};
use super::{RepairError, tenants};
use crate::identity::Identity;
use crate::seams::NodeSeams;

/// The log's directory.
const LOG_DIR: &str = "log";

/// Holds what is damaged, and what becomes of the log.
pub(super) struct Survey {
    pub(super) report: Report,
    pub(super) is_log_rewritten: bool,
    pub(super) log_id: Uuid,
    pub(super) log: DamagedLog,
    pub(super) groups: BTreeMap<GroupId, RepairedGroup>,
    /// Who has files after the repair.
    pub(super) files: Held,
}

/// Holds what the control plane's file says, or why it does not.
struct System {
    at: Option<Position>,
    state: SystemState,
    damage: Option<Damage>,
}

impl Survey {
    /// Looks at everything. `begun` is the report of a repair that was interrupted: what it says was found
    /// then, and may be repaired already.
    pub(super) async fn of(
        seams: &NodeSeams,
        identity: &Identity,
        log_id: Uuid,
        begun: Option<Report>,
    ) -> Result<Self, RepairError> {
        let stores = stores(seams, identity, log_id).await?;
        let found = tenants::look(&stores).await?;
        Self::with(seams, identity, (log_id, &stores), Some(found), begun).await
    }

    /// Looks at the log and the control plane alone.
    pub(super) async fn of_log(
        seams: &NodeSeams,
        identity: &Identity,
        log_id: Uuid,
    ) -> Result<Self, RepairError> {
        let stores = stores(seams, identity, log_id).await?;
        Self::with(seams, identity, (log_id, &stores), None, None).await
    }

    async fn with(
        seams: &NodeSeams,
        identity: &Identity,
        (log_id, stores): (Uuid, &Arc<FileStores>),
        found: Option<tenants::Found>,
        begun: Option<Report>,
    ) -> Result<Self, RepairError> {
        let is_whole_look = found.is_some();
        let tenants::Found { mut held, mut losses } = found.unwrap_or_default();
        let damage = match &begun {
            // The log in its place may be half written.
            Some(_) => None,
            None => log_damage(seams, identity, log_id).await?,
        };
        let dir = begun.as_ref().map(|report| format!("{}/{LOG_DIR}", report.folder()));
        let dir = match dir {
            Some(aside) if exists(&*seams.disk, &aside)? => aside,
            _ => LOG_DIR.to_owned(),
        };
        let log = DamagedLog::read(&*seams.disk, &dir, log_id)?;
        if is_whole_look {
            let missed = tenants::missed(log.files(), &held, &losses);
            losses.extend(missed);
        }
        let mut system = system(stores, &log).await?;
        held.extend(system.at.map(|at| (StateMachineId::System, at)));
        let own = system_group(&log, &mut system, &held)?;
        let others = system.state.members().filter(|(node, ..)| *node != identity.node_id).count();
        if others > 0 {
            // The identity learns of a member a moment after the control plane.
            return Err(RepairError::NotAlone(others));
        }
        let is_log_damaged =
            damage.is_some() || begun.as_ref().is_some_and(|report| report.log.is_some());
        if is_whole_look && is_log_damaged {
            let lost = tenants::lost_with_log(&log, &system.state, &held, &losses);
            losses.extend(lost);
        }
        let mut groups = BTreeMap::from([(GroupId::SYSTEM, own)]);
        groups.extend(tenant_groups(&log, &system.state, &held, is_log_damaged));
        let is_behind = groups.iter().any(|(group, it)| it.last() > log.last(*group));
        let losses_of_log = losses_of(&groups, &system.state);
        let is_damaged = damage.is_some() || is_behind || !losses_of_log.is_empty();
        let files = files_of(&log, &system, held, &losses);
        let is_log_rewritten =
            begun.as_ref().is_none_or(|it| it.log.is_some() || it.system.is_some())
                && (begun.is_some() || is_damaged || system.damage.is_some());
        let report = match begun {
            Some(begun) => begun,
            None => Report {
                log: is_damaged.then(|| LogLoss {
                    damage,
                    broken: log.broken().to_vec(),
                    groups: losses_of_log,
                }),
                system: system.damage,
                tenants: tenants::named(losses, &system.state),
                ..Report::new(seams, identity)?
            },
        };
        Ok(Self { report, is_log_rewritten, log_id, log, groups, files })
    }
}

/// Tells up to where the new log says that each state machine has files.
fn files_of(log: &DamagedLog, system: &System, held: Held, losses: &[tenants::Loss]) -> Held {
    // A tenant's files that are older than the log knew stay missed: they lack what was cut from it.
    let mut files = log.files().clone();
    // Nothing is left of these, in the log or in files: a start must not take them for empty.
    let gone = losses.iter().filter(|(tenant, _, events)| {
        let group = system.state.tenant(*tenant).map(|entry| entry.group);
        events.is_none() && group.is_some_and(|group| log.last(group).is_none())
    });
    let gone = gone.map(|(tenant, ..)| (StateMachineId::Tenant(*tenant), Position::default()));
    files.extend(gone.filter(|(part, _)| !log.files().contains_key(part)).collect::<Vec<_>>());
    for (part, at) in held {
        let known = files.entry(part).or_insert(at);
        if part == StateMachineId::System || at.index > known.index {
            *known = at;
        }
    }
    if system.damage.is_some() && system.at.is_none() {
        files.remove(&StateMachineId::System);
    }
    files
}

/// Decides what becomes of group 0, and brings the state up to its end.
///
/// # Errors
/// When an entry of it is lost that the control plane's file does not have: nothing would say which tenants
/// there were, and what they and the members had been promised.
fn system_group(
    log: &DamagedLog,
    system: &mut System,
    held: &Held,
) -> Result<RepairedGroup, RepairError> {
    // The control plane alone applies this group: what its file has is not needed.
    let files: Vec<Position> = system.at.into_iter().collect();
    let repaired = log.repaired(GroupId::SYSTEM, system.at, held, &files);
    let is_file_whole = system.at.is_some() && system.damage.is_none();
    let lacks_entries = repaired.unreadable + repaired.dropped > 0;
    let lacks_beginning = system.at.is_none() && !log.has_beginning(GroupId::SYSTEM);
    if lacks_beginning || (lacks_entries && !is_file_whole) {
        let missing = || lost("it is missing".to_owned());
        let Damage { file, offset, what } = system.damage.clone().unwrap_or_else(missing);
        return Err(RepairError::SystemLost { file, offset, what });
    }
    for (position, envelope) in log.commands(&repaired)? {
        // Answers and effects were for those who asked then.
        let _ = system.state.apply(position, &envelope);
    }
    Ok(repaired)
}

fn tenant_groups(
    log: &DamagedLog,
    state: &SystemState,
    held: &Held,
    is_log_damaged: bool,
) -> BTreeMap<GroupId, RepairedGroup> {
    let mut files: BTreeMap<GroupId, Vec<Position>> = BTreeMap::new();
    for (tenant, entry) in state.tenants() {
        let at = held.get(&StateMachineId::Tenant(*tenant));
        files.entry(entry.group).or_default().extend(at);
    }
    let known = log.groups().filter(|group| *group != GroupId::SYSTEM);
    let groups: Vec<GroupId> = known.chain(files.keys().copied()).collect();
    let repaired = groups.into_iter().map(|group| {
        let at = files.get(&group);
        let base = log.base(group);
        // A group without an entry or a file, and with tenants: they are out of service and not deleted, for which
        // the group has to be there.
        let is_lost = is_log_damaged && at.is_some_and(Vec::is_empty) && log.last(group).is_none();
        let base = base.or_else(|| is_lost.then(Position::default));
        (group, log.repaired(group, base, held, at.map_or(&[][..], Vec::as_slice)))
    });
    // A group of which there is nothing but a vote has no log to be written.
    repaired.filter(|(_, it)| it.last().is_some()).collect()
}

fn losses_of(groups: &BTreeMap<GroupId, RepairedGroup>, state: &SystemState) -> Vec<GroupLoss> {
    let lossy = groups.iter().filter(|(_, it)| it.unreadable + it.dropped > 0);
    let loss = lossy.map(|(group, it)| GroupLoss {
        group: group.0,
        tenants: state.tenants_by_creation(None).filter(|(_, it, _)| it.group == *group).count(),
        unreadable: it.unreadable,
        dropped: it.dropped,
    });
    loss.collect()
}

async fn stores(
    seams: &NodeSeams,
    identity: &Identity,
    log_id: Uuid,
) -> Result<Arc<FileStores>, StoreError> {
    let preview: Arc<dyn Disk> = Arc::new(PreviewDisk(Arc::clone(&seams.disk)));
    let config = StoresConfig { log: Some(log_id), ..StoresConfig::default() };
    FileStores::open_with(preview, seams.executor.clone(), &identity.region, config).await
}

/// Tells what a start would refuse the log for.
async fn log_damage(
    seams: &NodeSeams,
    identity: &Identity,
    log_id: Uuid,
) -> Result<Option<Damage>, StoreError> {
    let look = has_log(&*seams.disk).map_err(|error| store_error("look for the log", error))?;
    if !look {
        let what = "it is missing, with every entry in it".to_owned();
        return Ok(Some(Damage { file: LOG_DIR.to_owned(), offset: 0, what }));
    }
    let preview: Arc<dyn Disk> = Arc::new(PreviewDisk(Arc::clone(&seams.disk)));
    let executor = seams.executor.clone();
    match StoppedLog::open(preview, executor, log_id, &identity.region).await {
        Ok(_) => Ok(None),
        Err(error) => Damage::of(error).map(Some),
    }
}

/// Says what is wrong with the control plane's file.
fn lost(what: String) -> Damage {
    Damage { file: "system.redb".to_owned(), offset: 0, what }
}

/// Reads the control plane's file.
async fn system(stores: &Arc<FileStores>, log: &DamagedLog) -> Result<System, StoreError> {
    let known = log.files().get(&StateMachineId::System).copied();
    let nothing = |damage| System { at: None, state: SystemState::default(), damage };
    if !stores.exists(StateMachineId::System)? {
        let damage = known.map(|at| lost(format!("it is missing, and held everything up to {at}")));
        return Ok(nothing(damage));
    }
    let read = async {
        let store = stores.open(StateMachineId::System).await?;
        let at = store.position();
        tenants::check_rows(&*store)?;
        let rows = RowBuffer::new(Some(store));
        Ok::<_, StoreError>((at, SystemState::load(&rows)?))
    };
    match read.await {
        Ok((at, state))
            if at.is_none_or(|at| known.is_some_and(|known| at.index < known.index)) =>
        {
            let at_known = known.unwrap_or_default();
            let what =
                format!("it is older than the log says, which knows that it went to {at_known}");
            let damage = known.map(|_| lost(what));
            Ok(System { at, state, damage })
        }
        Ok((at, state)) => Ok(System { at, state, damage: None }),
        Err(error) => Ok(nothing(Some(Damage::of(error)?))),
    }
}

fn exists(disk: &dyn Disk, path: &str) -> Result<bool, StoreError> {
    disk.exists(path).map_err(|error| store_error(format!("look for {path}"), error))
}
