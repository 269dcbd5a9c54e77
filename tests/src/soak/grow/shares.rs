//! How replicas, leads, tenants and bytes are shared among the nodes, as the API tells.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::{Client, eventually_within};

/// Replicas that a group of tenants has where there are enough nodes.
const REPLICAS: usize = 3;

/// A group of tenants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) leader: String,
    pub(super) voters: BTreeSet<String>,
    pub(super) learners: BTreeSet<String>,
    pub(super) tenants: u64,
}

/// The groups of tenants, by their ids.
pub(super) type Groups = BTreeMap<u64, Group>;

/// What one node has.
#[derive(Clone, Debug, Default)]
pub(super) struct Share {
    /// Replicas of groups.
    pub(super) replicas: usize,
    /// Tenants in them.
    pub(super) tenants: u64,
    /// Groups that it leads.
    pub(super) leads: usize,
    /// Tenants in those.
    pub(super) led_tenants: u64,
}

/// The groups of tenants as a node tells; nothing when it cannot tell, or a group has no leader.
pub(super) async fn groups(client: &Client) -> Option<Groups> {
    let reply = client.call("GET", "/api/cluster/groups").try_send().await.ok()?;
    let told = (reply.status == 200).then(|| reply.json())?;
    let of_tenants = told["groups"].as_array()?.iter().filter(|group| group["id"] != 0);
    of_tenants.map(|group| Some((group["id"].as_u64()?, told_of(group)?))).collect()
}

fn told_of(group: &Value) -> Option<Group> {
    let mut told = Group {
        leader: group["leader"].as_str()?.to_owned(),
        voters: BTreeSet::new(),
        learners: BTreeSet::new(),
        tenants: group["tenants"].as_u64()?,
    };
    for replica in group["replicas"].as_array()? {
        let node = replica["node_id"].as_str()?.to_owned();
        let role = &replica["role"];
        if role == "voter" {
            told.voters.insert(node)
        } else {
            told.learners.insert(node)
        };
    }
    Some(told)
}

/// Waits until a cluster of so many nodes has come to rest: each group has its voters and nobody else,
/// nobody has two replicas more than another. Gives the groups.
pub(super) async fn settled(client: &Client, nodes: usize, within: Duration) -> Groups {
    eventually_within(within, "every group has what it should have", async || {
        let groups = groups(client).await?;
        let is_whole =
            |group: &Group| group.learners.is_empty() && group.voters.len() == REPLICAS.min(nodes);
        let shares = shares(&groups);
        let replicas = || shares.values().map(|share| share.replicas);
        let is_even =
            shares.len() == nodes && replicas().max() <= replicas().min().map(|it| it + 1);
        (groups.values().all(is_whole) && is_even).then_some(groups)
    })
    .await
}

/// What each node has.
pub(super) fn shares(groups: &Groups) -> BTreeMap<String, Share> {
    let mut shares: BTreeMap<String, Share> = BTreeMap::new();
    for group in groups.values() {
        for node in group.voters.union(&group.learners) {
            let share = shares.entry(node.clone()).or_default();
            share.replicas += 1;
            share.tenants += group.tenants;
        }
        let share = shares.entry(group.leader.clone()).or_default();
        share.leads += 1;
        share.led_tenants += group.tenants;
    }
    shares
}

/// The greatest of some figures, as a part of their average.
pub(super) fn greatest(figures: impl Iterator<Item = u64>) -> f64 {
    let figures: Vec<u64> = figures.collect();
    let average = figures.iter().sum::<u64>() as f64 / figures.len().max(1) as f64;
    figures.into_iter().max().unwrap_or_default() as f64 / average.max(f64::MIN_POSITIVE)
}

/// The least that the greatest number of tenants can be that a node leads, whichever of its voters leads
/// each group.
pub(super) fn least_lead(groups: &Groups) -> u64 {
    fn place(rest: &[&Group], led: &mut BTreeMap<String, u64>, best: &mut u64) {
        let greatest = led.values().copied().max().unwrap_or_default();
        let Some((group, rest)) = rest.split_first() else {
            *best = greatest.min(*best);
            return;
        };
        for voter in &group.voters {
            // What is worse than the best already gets no better.
            if greatest >= *best {
                return;
            }
            *led.entry(voter.clone()).or_default() += group.tenants;
            place(rest, led, best);
            *led.entry(voter.clone()).or_default() -= group.tenants;
        }
    }
    let mut best = u64::MAX;
    place(&groups.values().collect::<Vec<_>>(), &mut BTreeMap::new(), &mut best);
    best
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { replicas, tenants, leads, led_tenants } = self;
        write!(f, "{replicas} replicas with {tenants} tenants, leads {leads} with {led_tenants}")
    }
}
