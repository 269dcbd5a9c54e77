//! What a repair dropped: for people, and as a file.

use std::fmt;

use serde::{Deserialize, Serialize};
use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::ports::StoreError;
use shiioo_storage::BrokenPlace;
use shiioo_storage::disk::store_error;
use uuid::Uuid;

use crate::identity::Identity;
use crate::recovery::some;
use crate::seams::NodeSeams;

/// Layout of the file.
const FORMAT_VERSION: u32 = 1;

/// Says what a repair dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(super) format_version: u32,
    pub(super) repaired_at: String,
    pub(super) node_id: String,
    /// Where what was damaged is kept.
    pub(super) kept_in: String,
    /// What is lost of the log; `None` where nothing is.
    pub(super) log: Option<LogLoss>,
    /// What was wrong with `system.redb`, which is made anew from the log.
    pub(super) system: Option<Damage>,
    pub(super) tenants: Vec<TenantLoss>,
    /// The cluster before, and the one that it goes on as.
    pub(super) clusters: Option<(Uuid, Uuid)>,
}

/// Says where a file is damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Damage {
    pub(super) file: String,
    pub(super) offset: u64,
    pub(super) what: String,
}

/// Says what is lost of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogLoss {
    /// Why the node did not start.
    pub(super) damage: Option<Damage>,
    pub(super) broken: Vec<BrokenPlace>,
    /// Groups of which entries are known to be missing.
    pub(super) groups: Vec<GroupLoss>,
}

/// Says what is lost of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GroupLoss {
    pub(super) group: u32,
    pub(super) tenants: usize,
    /// Entries that cannot be read. Files may have what was in them.
    pub(super) unreadable: u64,
    /// Entries behind them that can be read and are not applied.
    pub(super) dropped: u64,
}

/// Says what is damaged of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TenantLoss {
    pub(super) id: String,
    /// `None` where the control plane does not know the tenant.
    pub(super) name: Option<String>,
    #[serde(flatten)]
    pub(super) damage: Damage,
    /// What is lost of its events; `None` where its index is damaged, and it stays out of service.
    pub(super) events: Option<EventsLoss>,
}

/// Says where an event log is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EventsLoss {
    /// Events that are left.
    pub(super) kept: u64,
    /// Bytes of these.
    pub(super) bytes: u64,
    /// Events that are lost.
    pub(super) lost: u64,
}

impl Damage {
    /// Takes an error for damage.
    ///
    /// # Errors
    /// The error, where it is none.
    pub(super) fn of(error: StoreError) -> Result<Self, StoreError> {
        match error {
            StoreError::Damaged { file, offset, what } => Ok(Self { file, offset, what }),
            error => Err(error),
        }
    }

    /// Takes an error in the files of a tenant for damage, also one of the disk: it is in the way of this tenant alone.
    ///
    /// # Errors
    /// The error, where it passes by itself or tells of a newer program.
    pub(super) fn of_tenant(tenant: TenantId, error: StoreError) -> Result<Self, StoreError> {
        match error {
            StoreError::Io { .. } if !error.is_passing() => {
                let file = format!("the files of tenant {tenant}");
                Ok(Self { file, offset: 0, what: format!("they cannot be read: {error}") })
            }
            error => Self::of(error),
        }
    }
}

impl Report {
    /// Makes the report of a repair that begins now and has found nothing.
    ///
    /// # Errors
    /// When it cannot be told which folders there are.
    pub(super) fn new(seams: &NodeSeams, identity: &Identity) -> Result<Self, StoreError> {
        let repaired_at = seams.seams.clock.now().to_string();
        let time: String = repaired_at.chars().filter(char::is_ascii_alphanumeric).collect();
        // What an earlier repair has kept would be taken for what this one is to keep.
        let mut kept_in = format!("repaired-{time}");
        let is_there = |path: &String| {
            let found = seams.disk.exists(path);
            found.map_err(|error| store_error(format!("look for {path}"), error))
        };
        while is_there(&kept_in)? {
            kept_in.push('x');
        }
        Ok(Self {
            format_version: FORMAT_VERSION,
            kept_in,
            repaired_at,
            node_id: identity.node_id.to_string(),
            log: None,
            system: None,
            tenants: Vec::new(),
            clusters: None,
        })
    }

    /// Returns whether nothing is damaged.
    pub(super) const fn is_empty(&self) -> bool {
        self.log.is_none() && self.system.is_none() && self.tenants.is_empty()
    }

    /// Returns whether entries can be missing.
    pub(super) const fn may_lack_entries(&self) -> bool {
        self.log.is_some()
    }

    /// Returns the folder of what was damaged, relative to the data directory.
    pub(super) fn folder(&self) -> String {
        self.kept_in.clone()
    }

    /// Returns the path of the file, relative to the data directory.
    pub(crate) fn file(&self) -> String {
        format!("{}.json", self.kept_in.replacen("repaired-", "repair-", 1))
    }

    /// Returns the contents of the file.
    pub(super) fn to_json(&self) -> Vec<u8> {
        // Texts and numbers alone: it can always be written as JSON.
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Says in one line what is lost, and how to go on.
    pub(super) fn way_out(&self) -> String {
        let mut lost = Vec::new();
        if let Some(LogLoss { broken, groups, .. }) = &self.log {
            let bytes: u64 = broken.iter().map(|place| place.bytes).sum();
            let entries: u64 = groups.iter().map(|it| it.unreadable + it.dropped).sum();
            let of = groups.iter().map(|it| it.group.to_string()).collect::<Vec<_>>().join(", ");
            let entries = match entries {
                0 => "it is not known of which entries".to_owned(),
                entries => {
                    format!("at least {entries} entries of groups {of}, unless files have them")
                }
            };
            lost.push(format!("places of the log: {}, of {bytes} bytes: {entries}", broken.len()));
        }
        if self.system.is_some() {
            lost.push("nothing of system.redb, which can be made anew from the log".to_owned());
        }
        format!(
            "No other member has a copy. Put the data directory back from one made while the node was \
             stopped, or start once with --repair, which goes on without what is lost ({}), writes a \
             report, and keeps what is damaged in a folder",
            lost.join("; ")
        )
    }
}

/// The report for people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Repair of {}", self.node_id)?;
        if let Some(log) = &self.log {
            write!(f, "{log}")?;
        }
        if let Some(Damage { file, offset, what }) = &self.system {
            writeln!(f, "  {file} at byte {offset}: {what}")?;
            writeln!(f, "    it is made anew from the log")?;
        }
        if !self.tenants.is_empty() {
            writeln!(f, "  tenants with damaged files: {}", self.tenants.len())?;
            some(f, self.tenants.iter())?;
        }
        if let Some((before, after)) = &self.clusters {
            writeln!(
                f,
                "  cluster {before} goes on as cluster {after}: fencing tokens are above all earlier ones, \
                 join tokens are void"
            )?;
        }
        writeln!(f, "  what was damaged is kept in {}", self.kept_in)
    }
}

impl fmt::Display for LogLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Damage { file, offset, what }) = &self.damage {
            writeln!(f, "  {file} at byte {offset}: {what}")?;
        }
        writeln!(f, "  places of the log that cannot be read: {}", self.broken.len())?;
        some(f, self.broken.iter().map(Place))?;
        writeln!(
            f,
            "  groups of which entries are known to be missing: {} (others may have lost their last ones)",
            self.groups.len()
        )?;
        for GroupLoss { group, tenants, unreadable, dropped } in &self.groups {
            writeln!(
                f,
                "    group {group}, {tenants} tenants: {unreadable} entries cannot be read; of those behind \
                 them {dropped} are not applied"
            )?;
        }
        Ok(())
    }
}

struct Place<'a>(&'a BrokenPlace);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BrokenPlace { file, offset, bytes, what } = self.0;
        write!(f, "{file} from byte {offset} on, {bytes} bytes: {what}")
    }
}

impl fmt::Display for TenantLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, name, damage: Damage { file, offset, what }, events } = self;
        // Quoted and escaped: a tenant chose the name, and this goes to a terminal.
        let name = name.as_ref().map_or_else(String::new, |name| format!(" ({name:?})"));
        write!(f, "{id}{name}: {file} at byte {offset}: {what}; ")?;
        match events {
            Some(EventsLoss { kept, lost, .. }) => {
                write!(f, "{lost} events are lost, the first {kept} are kept")
            }
            None => write!(
                f,
                "nothing was changed, and the tenant is out of service until its files are put back or it \
                 is deleted"
            ),
        }
    }
}
