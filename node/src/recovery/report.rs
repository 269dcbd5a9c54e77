//! What a forced recovery gives up, and what it may lack: for people, and as a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use shiioo_actors::domain::ids::{GroupId, Position, RaftId, TenantId};
use shiioo_actors::domain::region::Region;
use shiioo_actors::state::system::SystemState;
use uuid::Uuid;

use super::plan::{Plan, PlannedGroup};
use crate::identity::Identity;

/// Layout of the file.
const FORMAT_VERSION: u32 = 1;
/// Tenants that are named on the terminal, of each kind. The file has all.
const SHOWN_MAX: usize = 20;

/// Says what a recovery gives up, and what it may lack.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Report {
    format_version: u32,
    recovered_at: String,
    node_id: String,
    raft_id: RaftId,
    region: Region,
    former_cluster_id: Uuid,
    cluster_id: Uuid,
    counts: Counts,
    /// Members that do not belong to the cluster any more.
    given_up: Vec<GivenUp>,
    /// Groups that go on from this node's replica.
    groups: Vec<KeptGroup>,
    /// Groups that have no replica here.
    lost_groups: Vec<LostGroup>,
    /// Tenants of these groups.
    lost_tenants: Vec<NamedTenant>,
    /// Tenants with files here that group 0 does not know: it lacks what made them.
    unknown_tenants: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
struct Counts {
    given_up: usize,
    groups: usize,
    lost_groups: usize,
    tenants: usize,
    lost_tenants: usize,
    unknown_tenants: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct GivenUp {
    node_id: String,
    raft_id: RaftId,
    node_addr: String,
    region: Region,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct KeptGroup {
    group: u32,
    tenants: usize,
    last: Position,
    /// Entries up to here were known to be committed; those from here to `last` are kept all the same.
    committed_at_least: Option<Position>,
    /// The greatest term that this replica knew.
    known_term: u64,
    voters: Vec<RaftId>,
    learners: Vec<RaftId>,
    /// Where the log ended that this node had of the group before it left it. The replica had come back and had
    /// not caught up to there.
    had_before: Option<Position>,
    /// Whether others can have acknowledged entries beyond `last`.
    may_lack_entries: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct LostGroup {
    group: u32,
    region: Region,
    replicas: Vec<RaftId>,
    tenants: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct NamedTenant {
    id: String,
    name: String,
    group: u32,
}

impl Report {
    /// Reports on a plan, by what the control plane knows before it is carried out. `on_disk` are the
    /// tenants that have files.
    pub(super) fn of(
        plan: &Plan,
        identity: &Identity,
        state: &SystemState,
        on_disk: &[TenantId],
    ) -> Self {
        let mut tenants: BTreeMap<GroupId, usize> = BTreeMap::new();
        for (_, entry, _) in state.tenants_by_creation(None) {
            *tenants.entry(entry.group).or_default() += 1;
        }
        let lost_groups = lost_groups(plan, state, &tenants);
        let lost_tenants = lost_tenants(state, &lost_groups);
        let kept = |it| KeptGroup::of(it, identity.raft_id, &tenants);
        let groups: Vec<_> = plan.groups.iter().map(kept).collect();
        let given_up = given_up(state, identity.raft_id);
        let unknown = on_disk.iter().filter(|tenant| state.tenant(**tenant).is_none());
        let unknown_tenants: Vec<_> = unknown.map(ToString::to_string).collect();
        let counts = Counts {
            given_up: given_up.len(),
            groups: groups.len(),
            lost_groups: lost_groups.len(),
            tenants: tenants.values().sum::<usize>() - lost_tenants.len(),
            lost_tenants: lost_tenants.len(),
            unknown_tenants: unknown_tenants.len(),
        };
        Self {
            format_version: FORMAT_VERSION,
            recovered_at: plan.at.to_string(),
            node_id: identity.node_id.to_string(),
            raft_id: identity.raft_id,
            region: identity.region.clone(),
            // Not the identity's, which may be the new one already.
            former_cluster_id: state.authority().map_or(identity.cluster_id, |it| it.cluster),
            cluster_id: plan.cluster_id,
            counts,
            given_up,
            groups,
            lost_groups,
            lost_tenants,
            unknown_tenants,
        }
    }

    /// Returns the ids of the former cluster and of the one that it goes on as.
    pub(super) const fn clusters(&self) -> (Uuid, Uuid) {
        (self.former_cluster_id, self.cluster_id)
    }

    /// Returns the path of the file, relative to the data directory.
    pub(crate) fn file(&self) -> String {
        let time: String = self.recovered_at.chars().filter(char::is_ascii_alphanumeric).collect();
        format!("recovery-{time}.json")
    }

    /// Returns the contents of the file.
    pub(super) fn to_json(&self) -> Vec<u8> {
        // Texts and numbers alone: it can always be written as JSON.
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

impl KeptGroup {
    pub(super) fn of(
        planned: &PlannedGroup,
        raft_id: RaftId,
        tenants: &BTreeMap<GroupId, usize>,
    ) -> Self {
        Self {
            group: planned.group.0,
            tenants: tenants.get(&planned.group).copied().unwrap_or(0),
            last: planned.last,
            committed_at_least: planned.committed,
            known_term: planned.term - 1,
            voters: planned.voters.clone(),
            learners: planned.learners.clone(),
            had_before: planned.had_before,
            may_lack_entries: planned.had_before.is_some() || planned.voters != [raft_id],
        }
    }
}

fn given_up(state: &SystemState, raft_id: RaftId) -> Vec<GivenUp> {
    let others = state.members().filter(|(.., member)| member.raft_id != raft_id);
    let given_up = others.map(|(node, record, member)| GivenUp {
        node_id: node.to_string(),
        raft_id: member.raft_id,
        node_addr: member.node_addr.clone(),
        region: record.region.clone(),
    });
    given_up.collect()
}

fn lost_groups(
    plan: &Plan,
    state: &SystemState,
    tenants: &BTreeMap<GroupId, usize>,
) -> Vec<LostGroup> {
    let lost = state.groups().iter().filter(|(group, _)| plan.group(**group).is_none());
    let lost = lost.map(|(group, placement)| LostGroup {
        group: group.0,
        region: placement.region.clone(),
        replicas: placement.replicas.clone(),
        tenants: tenants.get(group).copied().unwrap_or(0),
    });
    lost.collect()
}

fn lost_tenants(state: &SystemState, lost_groups: &[LostGroup]) -> Vec<NamedTenant> {
    let groups: BTreeSet<u32> = lost_groups.iter().map(|lost| lost.group).collect();
    let lost = state.tenants_by_creation(None);
    let lost = lost.filter(|(_, entry, _)| groups.contains(&entry.group.0));
    let named = lost.map(|(id, entry, record)| NamedTenant {
        id: id.to_string(),
        name: record.name.clone(),
        group: entry.group.0,
    });
    named.collect()
}

/// The report for people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node_id, raft_id, region, former_cluster_id, cluster_id, counts, .. } = self;
        writeln!(f, "Recovery by force of {node_id} (member {raft_id}, region {region})")?;
        writeln!(f, "  cluster {former_cluster_id} goes on as cluster {cluster_id}")?;
        writeln!(f, "  members that are given up: {}", counts.given_up)?;
        for it in &self.given_up {
            writeln!(f, "    {} (member {}, at {})", it.node_id, it.raft_id, it.node_addr)?;
        }
        writeln!(
            f,
            "  groups that go on from this replica: {} (entries as term-index: the later one has the \
             greater term, or in the same term the greater index)",
            counts.groups
        )?;
        for group in &self.groups {
            write!(f, "{group}")?;
        }
        writeln!(f, "  groups without a replica here, which are lost: {}", counts.lost_groups)?;
        for it in &self.lost_groups {
            let LostGroup { group, region, replicas, tenants } = it;
            writeln!(
                f,
                "    group {group} of region {region}: {tenants} tenants, were on members {}",
                listed(replicas)
            )?;
        }
        writeln!(f, "  tenants that are kept: {}", counts.tenants)?;
        writeln!(f, "  tenants that are lost: {}", counts.lost_tenants)?;
        // Quoted and escaped: a tenant chose the name, and this goes to a terminal.
        let lost = self.lost_tenants.iter().map(|it| format!("{} ({:?})", it.id, it.name));
        some(f, lost)?;
        if counts.unknown_tenants > 0 {
            let unknown = counts.unknown_tenants;
            writeln!(
                f,
                "  tenants with files here that the control plane does not know: {unknown}"
            )?;
            some(f, self.unknown_tenants.iter().cloned())?;
        }
        writeln!(
            f,
            "  locks stay held, under fencing tokens above all earlier ones; join tokens are void"
        )
    }
}

/// Lists members by their Raft ids.
fn listed(members: &[RaftId]) -> String {
    members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Writes the first lines of a list.
pub(crate) fn some<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    lines: impl ExactSizeIterator<Item = T>,
) -> fmt::Result {
    let more = lines.len().saturating_sub(SHOWN_MAX);
    for line in lines.take(SHOWN_MAX) {
        writeln!(f, "    {line}")?;
    }
    if more > 0 {
        writeln!(f, "    and {more} more")?;
    }
    Ok(())
}

impl fmt::Display for KeptGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, tenants, last, known_term, voters, .. } = self;
        write!(
            f,
            "    group {group}: {tenants} tenants, last entry {last}, known term {known_term}, "
        )?;
        match self.committed_at_least {
            Some(committed) => write!(f, "committed up to {committed} at least")?,
            None => write!(f, "nothing known to be committed")?,
        }
        if let Some(had) = self.had_before {
            writeln!(
                f,
                "; what comes after that up to {had} IS missing: this replica had left the group, had come \
                 back and had not caught up; another member that has it is a better choice"
            )
        } else if self.may_lack_entries {
            let voters = listed(voters);
            writeln!(
                f,
                "; what a quorum of members {voters} acknowledged after that may be missing"
            )
        } else {
            writeln!(f, "; nothing can be missing")
        }
    }
}
