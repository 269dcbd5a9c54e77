//! A member whose log is lost or damaged goes on as another member.
//!
//! The problem: the log held how the member has voted and what it has acknowledged, in every group, and
//! others count on both. Under its id in Raft groups it must not vote or acknowledge anything again. What
//! it had acknowledged the others have, as long as they are a quorum without it.
//!
//! ```text
//! under its old id                          under its new id
//!  identity/candidate.json: id and key
//!  asks the members for a join token
//!  joins with it, like any other node
//!  identity/next.json ────────────────────> asks the members to have the old one leave
//!                                           replaced-<old id>/: log, system.redb, tenants, node.json
//!                                           identity/node.json: it is the other one from here on
//!                                           starts, with nothing, like a node that has just joined
//! ```
//!
//! Invariants:
//! - under the old id the node opens no group any more: to the groups it is a member that has died;
//! - nothing under the new id has voted or acknowledged anything before;
//! - the old member leaves only after the new one was admitted, and by its word: so whatever a crash leaves,
//!   there is a certificate that the members believe, and the next start goes on where this one ended;
//! - what the node had is moved, and not removed: put back in its place it is the old member again.
//!
//! Deliberately not done: a member that has the only replica of a group, or one of two, is not replaced,
//! because nobody could go on with the group. Of two, the other has everything that was acknowledged, and
//! could be made the only voter without a vote, as a forced recovery does; but that is done to a node that is
//! stopped, and the refusal says so. That it has the only one stands in the control plane's own file;
//! where that is gone as well, the member is replaced, and what was moved has to be put back for the sake of
//! such a group.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use shiioo_actors::cluster::join::JoinSecret;
use shiioo_actors::command::{
    CreateJoinToken, DrainMember, Outcome, Refusal, RemoveJoinToken, SystemCommand,
};
use shiioo_actors::domain::ids::{GroupId, RaftId, StateMachineId, TokenId};
use shiioo_actors::domain::membership::{JoinToken, Member};
use shiioo_actors::ports::{GroupStatus, Peers, StoreError, Stores as _};
use shiioo_actors::services::{groups_elsewhere, petition};
use shiioo_actors::state::system::SystemState;
use shiioo_actors::state::{RowBuffer, StateMachine as _};
use shiioo_storage::disk::store_error;
use shiioo_storage::{FileStores, set_data_aside};
use shiioo_transport::pki;
use tokio::time::{Instant, sleep};

use crate::config::Config;
use crate::identity::{Candidate, Identity, IdentityError};
use crate::joining::{self, JoiningError};
use crate::known_members;
use crate::seams::NodeSeams;

/// Longest time that the members are asked for one thing.
const ASK_MAX: Duration = Duration::from_secs(60);
/// Longest time that they are asked for what does no harm if it is not done.
const TIDY_MAX: Duration = Duration::from_secs(2);
/// Longest time that the others are waited for until they can go on without the old member.
const QUORUMS_MAX: Duration = Duration::from_secs(20);
/// Pause before the members are asked again how their groups are.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Uses of the token: one, and none is left for anybody else.
const TOKEN_USES: u32 = 1;

/// Tells which groups the others could not go on with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needed {
    /// Groups of which another voter has everything that was acknowledged, and cannot agree to anything alone.
    one_of_two: usize,
    /// Groups of which nobody else is known to have a replica.
    only_here: usize,
    /// Members that there are beside this one.
    others: usize,
}

impl Needed {
    const fn groups(&self) -> usize {
        self.one_of_two + self.only_here
    }
}

impl fmt::Display for Needed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { one_of_two, only_here, others } = *self;
        if only_here > 0 {
            return write!(
                f,
                "of {only_here} it has the only replica that is known. Put its log back from a copy made \
                 while the node was stopped"
            );
        }
        write!(
            f,
            "{one_of_two} have two voters, of which this is one, and one alone is no majority. "
        )?;
        if others == 1 {
            f.write_str(
                "The other member has everything that was acknowledged: stop it, run `shiioo recover \
                 --force` on its data directory, start it again, and let this node join it with an empty \
                 data directory",
            )
        } else {
            f.write_str(
                "Put the log back from a copy made while the node was stopped; where there is none, \
                 `shiioo recover --force` goes on with one member alone, which gives up all others",
            )
        }
    }
}

/// Tells why a member is not replaced.
#[derive(Debug, thiserror::Error)]
pub enum ReplacementError {
    /// It holds what no quorum of others does.
    #[error(
        "the other members could not go on with {groups} of the groups that it has a replica of: {0}",
        groups = .0.groups()
    )]
    Needed(Needed),
    /// The members did not answer, or cannot agree.
    #[error("the other members did not agree to it within {max} s: {0}", max = ASK_MAX.as_secs())]
    NotAgreed(String),
    /// The members refuse.
    #[error("the other members refuse: {0}")]
    Refused(Refusal),
    /// It was not let in.
    #[error(transparent)]
    Joining(#[from] JoiningError),
    /// The identity cannot be read or written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// What it had cannot be moved.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Returns the identity under which a member goes on, once the cluster has admitted it. Durable beside the old
/// one when this returns. `peers` call under the old one.
pub(crate) async fn admitted(
    config: &Config,
    seams: &NodeSeams,
    old: &Identity,
    member: &Member,
    peers: &dyn Peers,
) -> Result<Identity, ReplacementError> {
    let disk = Arc::clone(&seams.disk);
    let next = seams.executor.run(move || Identity::load_next(&*disk)).await?;
    let others = known_members::others(old);
    let members: Vec<RaftId> = others.iter().map(|peer| peer.raft_id).collect();
    if let Some(next) = next.filter(|next| next.cluster_id == old.cluster_id) {
        // Who answers the old certificate has not taken the old member out yet, and may have given up the new
        // one, which never came: it is admitted once more then, to the same place if it is still known.
        // Who answers neither is asked under the new one, which alone is believed once the old one has left.
        if groups_elsewhere(peers, &members).await.is_empty() {
            return Ok(next);
        }
    }
    let (disk, ids, region) = (Arc::clone(&seams.disk), seams.seams.clone(), old.region.clone());
    let candidate = move || Candidate::load_or_create(&*disk, &ids, &region);
    let candidate = seams.executor.run(candidate).await?;
    await_quorums(config, seams, old.raft_id, (peers, &members)).await?;
    // One token for one candidate: a second attempt replaces it.
    let id = TokenId::from_uuid(candidate.node_id.uuid());
    let authority = pki::fingerprint(&old.authority);
    let secret = JoinSecret::generate(&*seams.seams.entropy, id, authority);
    let token = JoinToken {
        secret_hash: secret.hash(),
        // Until it is removed below: how long it may be is no question of clocks.
        expires_at: None,
        uses_left: Some(TOKEN_USES),
        created_at: seams.seams.clock.now(),
    };
    let create = CreateJoinToken { id, token, idempotency: None };
    ask(peers, &members, seams, SystemCommand::CreateJoinToken(create)).await?;
    let member = Member { node: candidate.node_id, ..member.clone() };
    let mut addresses: Vec<&str> = others.iter().map(|peer| peer.addr.as_str()).collect();
    addresses.extend(joining::join_addresses(config, &member.node_addr));
    let next = joining::be_admitted(seams, &candidate, &member, &addresses, Some(&secret)).await?;
    let next = Identity { former: old.former.clone(), ..next };
    let (disk, kept) = (Arc::clone(&seams.disk), next.clone());
    seams.executor.run(move || kept.store_as_next(&*disk)).await?;
    // Nobody knows its secret any more. It is used up, but where the node was admitted before.
    let remove = SystemCommand::RemoveJoinToken(RemoveJoinToken { id });
    let until = Instant::now() + TIDY_MAX;
    if let Err(why) = petition(peers, &members, &seams.seams, &remove, until).await {
        tracing::debug!(%why, "the token by which this node was let in is still there");
    }
    Ok(next)
}

/// Has the old member leave, moves aside what it had, and makes `next` the identity of the node, durably.
/// `peers` call under the new one.
pub(crate) async fn take_over(
    seams: &NodeSeams,
    old: Identity,
    next: &Identity,
    peers: &dyn Peers,
) -> Result<(), ReplacementError> {
    let members: Vec<RaftId> = known_members::others(next)
        .iter()
        .map(|peer| peer.raft_id)
        .filter(|id| *id != old.raft_id)
        .collect();
    let drain = SystemCommand::DrainMember(DrainMember { node: old.node_id });
    match ask(peers, &members, seams, drain).await {
        // It has left before.
        Ok(()) | Err(ReplacementError::Refused(Refusal::NodeNotFound)) => {}
        // What nobody answered may have been done: the new identity stays beside the old one, for the next
        // start to find out which of them the members believe.
        Err(error) => return Err(error),
    }
    let (disk, kept) = (Arc::clone(&seams.disk), next.clone());
    let replace = move || -> Result<(), ReplacementError> {
        let folder = format!("replaced-{}", old.raft_id);
        let moved = set_data_aside(&*disk, &old.region, &folder);
        moved.map_err(|error| store_error(format!("move the old data to {folder}"), error))?;
        old.store_aside(&*disk, &folder)?;
        // Last: with the new identity a log that is still there would be another node's.
        kept.store(&*disk)?;
        tracing::warn!(
            folder,
            raft_id = %kept.raft_id,
            "this node is another member now; what it had is in the folder, and can be removed once the \
             cluster is healthy and nothing is missed"
        );
        Ok(())
    };
    seams.executor.run(replace).await
}

async fn ask(
    peers: &dyn Peers,
    members: &[RaftId],
    seams: &NodeSeams,
    command: SystemCommand,
) -> Result<(), ReplacementError> {
    let until = Instant::now() + ASK_MAX;
    match petition(peers, members, &seams.seams, &command, until).await {
        Ok(Outcome::Refused(refusal)) => Err(ReplacementError::Refused(refusal)),
        Ok(_) => Ok(()),
        Err(why) => Err(ReplacementError::NotAgreed(why)),
    }
}

/// Waits until the others can go on without the old member: some may be starting.
async fn await_quorums(
    config: &Config,
    seams: &NodeSeams,
    raft_id: RaftId,
    (peers, members): (&dyn Peers, &[RaftId]),
) -> Result<(), ReplacementError> {
    let placed = match control_plane(config, seams).await {
        Ok(state) => state.unwrap_or_default(),
        Err(error) if error.lasting().is_some() => {
            tracing::warn!(%error, "the control plane's file is damaged as well");
            SystemState::default()
        }
        // It may say that the only replica of a group is here.
        Err(error) => return Err(error.into()),
    };
    let placed = placed.groups().iter().filter(|(_, at)| at.replicas.contains(&raft_id));
    let placed: BTreeSet<GroupId> = placed.map(|(group, _)| *group).collect();
    let until = Instant::now() + QUORUMS_MAX;
    loop {
        let elsewhere = groups_elsewhere(peers, members).await;
        let needed = Needed { others: members.len(), ..needed_by(raft_id, &placed, &elsewhere) };
        if needed.groups() == 0 {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(ReplacementError::Needed(needed));
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Counts the groups that others could not go on with: of those that have a voter elsewhere, where the others
/// are no majority, or a change of the voters is under way, for which each of two sets needs one; and those
/// that were placed here and nobody else knows. The file that says what was placed
/// may be older than what others say.
fn needed_by(
    raft_id: RaftId,
    placed: &BTreeSet<GroupId>,
    elsewhere: &BTreeMap<GroupId, GroupStatus>,
) -> Needed {
    // How many vote, where this one does.
    let voters = |status: &&GroupStatus| {
        let voters = status.replicas.iter().filter(|replica| replica.voter);
        let voters: BTreeSet<RaftId> = voters.map(|replica| replica.raft_id).collect();
        match voters.len() {
            _ if !voters.contains(&raft_id) => 0,
            // Of two sets each needs a majority, and what is told here is both together.
            several if status.is_changing => several.min(2),
            several => several,
        }
    };
    let voting = |wanted| elsewhere.values().filter(|it| voters(it) == wanted).count();
    let unknown = placed.iter().filter(|group| !elsewhere.contains_key(group)).count();
    Needed { one_of_two: voting(2), only_here: voting(1) + unknown, others: 0 }
}

async fn control_plane(
    config: &Config,
    seams: &NodeSeams,
) -> Result<Option<SystemState>, StoreError> {
    let (disk, executor) = (Arc::clone(&seams.disk), seams.executor.clone());
    let stores = FileStores::open(disk, executor, &config.region).await?;
    if !stores.exists(StateMachineId::System)? {
        return Ok(None);
    }
    let rows = RowBuffer::new(Some(stores.open(StateMachineId::System).await?));
    SystemState::load(&rows).map(Some)
}

#[cfg(test)]
mod tests {
    use shiioo_actors::domain::region::Region;
    use shiioo_actors::ports::{Peer, ReplicaStatus};
    use shiioo_actors::testing::NoPeers;
    use shiioo_storage::Executor;
    use shiioo_storage::disk::SimDisk;

    use super::*;
    use crate::client_threads::ClientThreads;
    use crate::identity::LoadedIdentity;

    /// An earlier start may have had the old member leave, which is all that counts then.
    #[tokio::test(start_paused = true)]
    async fn while_nobody_answers_the_next_identity_stays() {
        let (disk, unused) = (SimDisk::new(1), tempfile::tempdir().unwrap());
        let real = NodeSeams::real(unused.path(), ClientThreads::Shared).unwrap();
        let seams = NodeSeams { disk: disk.mount(), executor: Executor::Inline, ..real };
        let region = Region::default();
        let founded = Identity::load_or_create(&*disk.mount(), &seams.seams, &region, false);
        let LoadedIdentity::Member(founded) = founded.unwrap() else { panic!("a candidate") };
        let other = Peer { raft_id: RaftId(2), node: founded.node_id, addr: "other:1".to_owned() };
        let old = Identity { peers: vec![other.into()], ..*founded };
        let next = Identity { raft_id: RaftId(4), ..old.clone() };
        next.store_as_next(&*disk.mount()).unwrap();
        let member = Member {
            node: old.node_id,
            raft_id: old.raft_id,
            api_addr: String::new(),
            node_addr: String::new(),
            region,
            labels: BTreeMap::new(),
            version: String::new(),
        };
        for _ in 0..2 {
            let found = admitted(&Config::default(), &seams, &old, &member, &NoPeers).await;
            assert_eq!(found.unwrap().raft_id, next.raft_id);
            let taken = take_over(&seams, old.clone(), &next, &NoPeers).await;
            assert!(matches!(taken, Err(ReplacementError::NotAgreed(_))), "{taken:?}");
        }
    }

    fn status(group: u32, voters: &[u64], learners: &[u64]) -> (GroupId, GroupStatus) {
        let replica =
            |voter| move |&id| ReplicaStatus { raft_id: RaftId(id), voter, applied: 0, lag: 0 };
        let voters = voters.iter().map(replica(true));
        let replicas = voters.chain(learners.iter().map(replica(false))).collect();
        let group = GroupId(group);
        let status = GroupStatus {
            group,
            term: 1,
            leader: None,
            replicas,
            is_changing: false,
            unfinished: None,
        };
        (group, status)
    }

    #[test]
    fn a_member_is_needed_where_the_others_are_no_majority() {
        let needed = |placed: &[u32], elsewhere: Vec<_>| {
            let placed = placed.iter().map(|group| GroupId(*group)).collect();
            let needed = needed_by(RaftId(1), &placed, &elsewhere.into_iter().collect());
            (needed.one_of_two, needed.only_here)
        };
        assert_eq!(needed(&[], vec![]), (0, 0));
        assert_eq!(
            needed(&[1, 2], vec![status(1, &[1, 2, 3], &[]), status(2, &[2], &[1])]),
            (0, 0)
        );
        assert_eq!(needed(&[1], vec![status(1, &[1, 2], &[3])]), (1, 0), "one of two");
        assert_eq!(needed(&[1, 2], vec![status(2, &[1, 2, 3], &[])]), (0, 1), "nobody else has it");
        let (group, joint) = status(1, &[1, 2, 3], &[]);
        let joint = GroupStatus { is_changing: true, ..joint };
        assert_eq!(needed(&[1], vec![(group, joint)]), (1, 0), "from 1 and 2 to 2 and 3, say");
    }
}
