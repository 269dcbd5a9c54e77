//! A node that is to have replicas and never catches up: it gets no vote and counts for nothing, and others have its
//! replicas.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::shares::{self, Groups};
use crate::{Cluster, SmallDisk, Tenant, eventually_within, pause, spec};

const TENANTS: usize = 24;
/// Runs of each tenant with a large input: together more than the small disk holds.
const RUNS: usize = 8;
const INPUT_BYTES: usize = 512 << 10;
/// The small disk.
const DISK_MIB: u32 = 24;
/// From a change until every group has what it should have, where nobody is stuck.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);
/// From the start of the node until it is seen to have a learner.
const SEEN_WITHIN: Duration = Duration::from_secs(30);
/// Silence of a node after which its replicas go to others, and the time for that.
const SILENT_REPLACED_WITHIN: Duration = Duration::from_secs(90);
/// A learner that lacks room is given up after two minutes, two groups at a time.
const FULL_REPLACED_WITHIN: Duration = Duration::from_secs(600);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// For so long the groups stay as they are.
const STAYS_FOR: Duration = Duration::from_secs(5);

/// Why the node does not catch up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It is stopped as soon as it has a learner.
    Stopped,
    /// Its disk is too small.
    Full,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    how: How,
    /// Groups in which it was a learner, and that others have instead.
    given_up: BTreeSet<u64>,
    /// From then on until all groups had their three voters, and no learner.
    replaced_after: Duration,
    /// The status of the node then, as the others list it.
    status: String,
}

/// Has a fourth node be stuck; panics where it gets a vote, counts, or is not replaced.
pub async fn trial(how: How) -> Report {
    let mut cluster = Cluster::of(3, &[]).await;
    shares::settled(&cluster.client(0), 3, SETTLED_WITHIN).await;
    let tenants = filled(&cluster).await;
    let launch = cluster.next_launch(&[]);
    let _disk = (how == How::Full).then(|| {
        SmallDisk::mount(&launch.folder, DISK_MIB).expect("a small disk, which takes root")
    });
    let place = cluster.admit(launch).await;
    let id = cluster.id(place).to_owned();
    let client = cluster.poller(0);
    let seen = eventually_within(SEEN_WITHIN, "it is to have a replica", async || {
        let groups = shares::groups(&client).await?;
        groups.values().any(|group| group.learners.contains(&id)).then_some(groups)
    })
    .await;
    if how == How::Stopped {
        cluster.stop(place);
    }
    let began = Instant::now();
    let within = if how == How::Stopped { SILENT_REPLACED_WITHIN } else { FULL_REPLACED_WITHIN };
    let waited = look_on(&cluster, (place, how), &seen, within).await;
    let replaced_after = began.elapsed();
    for tenant in &tenants {
        tenant.finished(spec::inline([spec::set("b", 2)])).await;
    }
    let left = shares::groups(&client).await.expect("the groups");
    let given_up: BTreeSet<u64> = waited.difference(&voted(&left, &id)).copied().collect();
    assert!(!given_up.is_empty(), "all of {waited:?} came to it: it was not stuck");
    let status = cluster.statuses(0).await.and_then(|all| all.get(&id).cloned());
    let status = status.expect("it is listed");
    assert!(!waited.is_empty(), "it was to have replicas");
    if how == How::Stopped {
        assert_ne!(status, "Healthy", "{id} lacks what it should have");
        // What it was kept from it gets now.
        cluster.cont(place);
        shares::settled(&cluster.client(0), 4, SETTLED_WITHIN).await;
        cluster.whole().await;
    }
    Report { how, given_up, replaced_after, status }
}

/// Makes tenants with more than a small disk holds.
async fn filled(cluster: &Cluster) -> Vec<Tenant> {
    let mut tenants = Vec::new();
    for at in 0..TENANTS {
        let tenant = Tenant::create(&cluster.client(at % 3), spec::unlimited()).await;
        for _ in 0..RUNS {
            let input = json!({ "text": "x".repeat(INPUT_BYTES) });
            tenant.finished(spec::inline_with(input, [spec::set("a", 1)])).await;
        }
        tenants.push(tenant);
    }
    tenants
}

/// Looks on until every group has three voters and no learner, and stays so. Meanwhile the node gets no vote
/// where it is a learner, `can_lose` does not count it, and the others are ready. Gives the groups in
/// which it was a learner.
async fn look_on(
    cluster: &Cluster,
    (place, how): (usize, How),
    seen: &Groups,
    within: Duration,
) -> BTreeSet<u64> {
    let (id, began) = (cluster.id(place), Instant::now());
    let had_vote: BTreeSet<u64> = voted(seen, id);
    let (mut waited, mut last, mut whole_since) = (BTreeSet::new(), BTreeMap::new(), None);
    while began.elapsed() < within {
        pause(LOOK_EVERY).await;
        let client = cluster.poller(0);
        let Some(groups) = shares::groups(&client).await else { continue };
        waited.extend(groups.iter().filter(|(_, it)| it.learners.contains(id)).map(|(at, _)| *at));
        if how == How::Stopped {
            let gained: Vec<u64> = voted(&groups, id).difference(&had_vote).copied().collect();
            assert!(gained.is_empty(), "a node that is stopped got a vote in {gained:?}");
            does_not_count(cluster, place).await;
        }
        let is_whole = groups.values().all(|it| it.learners.is_empty() && it.voters.len() == 3)
            && (how == How::Full || voted(&groups, id).is_empty());
        if !is_whole || groups != last {
            whole_since = is_whole.then(Instant::now);
        }
        last = groups;
        if whole_since.is_some_and(|since| since.elapsed() >= STAYS_FOR) {
            return waited;
        }
    }
    panic!("not replaced within {within:?}: {last:#?}");
}

/// The groups in which a node votes.
fn voted(groups: &Groups, id: &str) -> BTreeSet<u64> {
    groups.iter().filter(|(_, it)| it.voters.contains(id)).map(|(at, _)| *at).collect()
}

/// Once its silence was noticed, a node that is stopped counts nowhere: what can be lost is what the others
/// can lose, and they are ready.
async fn does_not_count(cluster: &Cluster, place: usize) {
    let client = cluster.poller(0);
    let Some(statuses) = cluster.statuses(0).await else { return };
    if statuses.get(cluster.id(place)).is_none_or(|status| status == "Healthy") {
        return;
    }
    let told = client.get("/api/cluster/groups").await;
    let health = client.get("/api/cluster/health").await;
    if told.status != 200 || health.status != 200 {
        return;
    }
    let spare = |group: &Value| {
        let replicas = group["replicas"].as_array().map_or(&[][..], Vec::as_slice);
        let voters = replicas.iter().filter(|replica| replica["role"] == "voter");
        let (dead, all) = voters.fold((0, 0), |(dead, all), voter| {
            (dead + u64::from(voter["node_id"] == cluster.id(place)), all + 1)
        });
        (all - dead).saturating_sub(all / 2 + 1)
    };
    let told = told.json();
    let most = told["groups"].as_array().and_then(|groups| groups.iter().map(spare).min());
    let counted = health.json()["can_lose"].as_u64();
    assert!(counted <= most, "can_lose counts who is silent: {counted:?} of {most:?} in {told:#}");
    for node in cluster.running().into_iter().filter(|node| *node != place) {
        let ready = cluster.poller(node).get("/readyz").await;
        assert_eq!(ready.status, 200, "node {node}: {ready}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { how, given_up, replaced_after, status } = self;
        write!(
            f,
            "stuck ({how:?}): gave up {given_up:?}, others have all replicas after \
             {replaced_after:.1?}; listed as {status}"
        )
    }
}
