//! Compares the replicas of a tenant with each other, so that a difference which no checksum shows is found
//! while two of them still agree on what is right.
//!
//! Replicas of a group apply the same entries and come to the same rows and events, byte for byte. Rot and
//! losses are found without looking at another replica ([`scrub`](super::scrub)). What is well-formed and
//! wrong is not: a bit that flipped in memory before its checksum was made, an old copy of files that the
//! log happens to accept, an `apply` that depends on something else than the entry. Such a replica would
//! serve another history once it leads, and send that to others.
//!
//! # Protocol
//!
//! The leader of the group compares one tenant after another, each every six hours ([`EVERY`]). When a tenant was
//! compared last each of its replicas knows until its node restarts, so that a new leader goes on where the
//! one before was, and a cluster that has started anew compares everything once.
//!
//! 1. It proposes [`Compare`](TenantCommand::Compare), which changes nothing. Each replica hashes all its
//!    rows before it applies the next entry, and notes the length of its events (`replica/runner/digest.rs`).
//!    So all of them hash the state at one position, however busy the tenant is.
//! 2. It asks each voter for its digest at that position. The events up to the noted length are hashed then,
//!    piece by piece; between two pieces the tenant serves others. Who has not come so far, or is still
//!    hashing, answers 'not yet' and is asked again, [`ASKS_MAX`] times. Who does not answer is left out.
//! 3. It compares what has come:
//!
//! | digests | what is done |
//! |---|---|
//! | all the same | nothing |
//! | two the same, one not | the odd one is damaged: it goes out of service and is rebuilt (decision 19) |
//! | two that differ, or three | the difference is named; nobody is taken out of service |
//!
//! Of two replicas nobody knows which is right, and of three different ones neither: to take one out of
//! service would cost availability and might keep the wrong one. An operator decides, with the name of each
//! member and its digest at hand.
//!
//! The odd one is told by the leader, and believes it only of a digest that it has answered itself and has
//! not been rebuilt since. A leader that is the odd one takes its own replica out of service; it then lets
//! a whole voter lead, as with any other damage, and is rebuilt by that one.
//!
//! # Costs
//!
//! An entry for each tenant and comparison, with the durable write that follows on each replica; a tenant that
//! sleeps is woken. Rows are read while the tenant's other commands wait, events are not. One replica is
//! hashed at a time on a node.
//!
//! # Invariants
//!
//! - A comparison changes no state, and no replica that agrees with another is ever taken out of service.
//! - Without an answer nothing is concluded: a replica that is behind, asleep, or away is never 'different'.
//!
//! # Not done
//!
//! Two replicas that are wrong alike outvote the one that is right: one may have been sent what the other
//! held. The control plane is not compared. That a replica is out of service for a difference is not
//! remembered over a restart of its node: the next comparison finds it again, unless it was rebuilt first.
//! A version of the program that lays rows out otherwise has to write all of them anew, or replicas that
//! were started with it at different positions would differ.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::parts::unreachable;
use super::{Registry, TenantDeps};
use crate::cluster::routing::{Directory, Router};
use crate::command::{Command, Outcome, TenantCommand};
use crate::domain::ids::{GroupId, Position, RaftId, StateMachineId, TenantId};
use crate::ports::{StateDigest, StoreError};
use crate::replica::{DigestCursor, ReplicaRequest};
use crate::services::mailbox::internal_envelope;

/// Time between two looks for tenants that are due; the first look comes so long after the start.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Time after which a tenant is compared again.
const EVERY: Duration = Duration::from_secs(6 * 60 * 60);
/// Pause between two tenants.
const TENANT_PAUSE: Duration = Duration::from_millis(20);
/// Longest wait until the command is applied here.
const PROPOSE_DEADLINE: Duration = Duration::from_secs(10);
/// Longest time for which events are hashed before 'not yet' is answered: less than a leader waits.
const HASH_TIME: Duration = Duration::from_secs(5);
/// Pause between two pieces of events: some 200 MB are read a second.
const PIECE_PAUSE: Duration = Duration::from_millis(5);
/// How often each replica is asked for its digest.
const ASKS_MAX: u32 = 20;
/// Pause before those who answered 'not yet' are asked again. A follower learns with the next heartbeat that
/// the entry is committed.
const ASK_PAUSE: Duration = Duration::from_millis(250);

/// Compares tenants of which this node leads the group.
pub(super) struct Comparer {
    pub(super) registry: Arc<Registry>,
    pub(super) deps: Arc<TenantDeps>,
    pub(super) directory: Arc<Directory>,
    pub(super) router: Router,
    pub(super) raft_id: RaftId,
}

/// What the replicas of a tenant held at one position, by member.
struct Digests {
    group: GroupId,
    tenant: TenantId,
    at: Position,
    by_member: BTreeMap<RaftId, StateDigest>,
}

/// Says what a comparison came to.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Alike,
    /// These differ from at least two that agree.
    Odd(BTreeSet<RaftId>),
    /// They differ, and nobody knows who is right.
    Unclear,
}

fn judge(by_member: &BTreeMap<RaftId, StateDigest>) -> Verdict {
    let mut members_of: BTreeMap<StateDigest, BTreeSet<RaftId>> = BTreeMap::new();
    for (member, digest) in by_member {
        members_of.entry(*digest).or_default().insert(*member);
    }
    if members_of.len() <= 1 {
        return Verdict::Alike;
    }
    let mut agreed = members_of.iter().filter(|(_, members)| members.len() > 1);
    match (agreed.next(), agreed.next()) {
        (Some((right, _)), None) => {
            let odd = by_member.iter().filter(|(_, digest)| *digest != right);
            Verdict::Odd(odd.map(|(member, _)| *member).collect())
        }
        _ => Verdict::Unclear,
    }
}

impl Comparer {
    /// Compares all tenants of the groups that this node leads, again and again.
    pub(super) async fn compare_for_ever(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let groups = self.directory.count_by_group().into_keys();
            for group in groups.filter(|group| self.others(*group).is_some()) {
                for tenant in self.directory.of_group(group) {
                    let activation = self.registry.activation(group, tenant);
                    if activation.is_some_and(|activation| activation.is_to_be_compared(EVERY)) {
                        self.compare(group, tenant).await;
                        tokio::time::sleep(TENANT_PAUSE).await;
                    }
                }
            }
        }
    }

    /// Compares the replicas of a tenant.
    async fn compare(&self, group: GroupId, tenant: TenantId) {
        let Some(digests) = self.digests(group, tenant).await else { return };
        self.registry.compared.fetch_add(1, Ordering::Relaxed);
        let verdict = judge(&digests.by_member);
        if verdict == Verdict::Alike {
            return;
        }
        self.registry.differing.fetch_add(1, Ordering::Relaxed);
        let Digests { at, by_member, .. } = &digests;
        match verdict {
            Verdict::Odd(odd) => {
                for member in odd {
                    tracing::error!(
                        %group, %tenant, %at, member = member.0, ?by_member,
                        "a replica differs from two others: it goes out of service there and is rebuilt"
                    );
                    self.tell(&digests, member).await;
                }
            }
            Verdict::Alike | Verdict::Unclear => tracing::error!(
                %group, %tenant, %at, ?by_member,
                "replicas differ and no two agree: find out which member is right, and have the others \
                 join anew"
            ),
        }
    }

    /// Returns the term in which this node leads a group, and who else votes; `None` where it does not lead,
    /// or nobody else votes. A replica that does not vote may be a copy that is still being sent.
    fn others(&self, group: GroupId) -> Option<(u64, BTreeSet<RaftId>)> {
        let term = self.deps.executor.log.leads(group)?;
        let mut others = self.router.known_voters(group)?.settled();
        others.remove(&self.raft_id);
        (!others.is_empty()).then_some((term, others))
    }

    /// Collects what the voters hold at one position; `None` when fewer than two can be compared.
    async fn digests(&self, group: GroupId, tenant: TenantId) -> Option<Digests> {
        let (term, mut others) = self.others(group)?;
        let placed = self.directory.get(tenant)?;
        let command =
            Command::Tenant { tenant, epoch: placed.epoch, command: TenantCommand::Compare };
        let envelope = internal_envelope(&self.deps.executor.seams, Some(term), command);
        // Whatever comes of it: one that is refused is not proposed again at each look.
        if let Some(activation) = self.registry.activation(group, tenant) {
            activation.note_comparison();
        }
        let proposed = self.deps.executor.log.propose(group, envelope);
        match timeout(PROPOSE_DEADLINE, proposed).await {
            Ok(Ok(Outcome::Done)) => {}
            not_done => {
                tracing::debug!(%tenant, ?not_done, "not compared");
                return None;
            }
        }
        // What was noted last: nobody else proposes this in this term, and nobody has since.
        let (mut at, mut by_member) = (None, BTreeMap::new());
        for _ in 0..ASKS_MAX {
            let held = self.registry.hash(group, tenant, at).await.ok()??;
            at = Some(held.position);
            by_member.extend(held.digest().map(|digest| (self.raft_id, digest)));
            self.ask(group, tenant, held.position, &mut others, &mut by_member).await;
            if others.is_empty() && by_member.contains_key(&self.raft_id) {
                break;
            }
            tokio::time::sleep(ASK_PAUSE).await;
        }
        (by_member.len() > 1).then_some(Digests { group, tenant, at: at?, by_member })
    }

    /// Asks others for their digests, and leaves in `others` who is to be asked again.
    async fn ask(
        &self,
        group: GroupId,
        tenant: TenantId,
        at: Position,
        others: &mut BTreeSet<RaftId>,
        by_member: &mut BTreeMap<RaftId, StateDigest>,
    ) {
        let (log, part) = (&self.deps.part.log, StateMachineId::Tenant(tenant));
        for member in others.clone() {
            match log.digest_of(group, member, part, at).await {
                Ok(None) => continue,
                Ok(Some(digest)) => drop(by_member.insert(member, digest)),
                Err(error) => {
                    tracing::debug!(%tenant, member = member.0, %error, "cannot be compared")
                }
            }
            others.remove(&member);
        }
    }

    /// Tells a replica that it differs from two others.
    async fn tell(&self, digests: &Digests, member: RaftId) {
        let Digests { group, tenant, at, by_member } = digests;
        let Some(digest) = by_member.get(&member) else { return };
        let part = StateMachineId::Tenant(*tenant);
        let told = if member == self.raft_id {
            let taken = self.registry.take_out(*group, part, *at, *digest).await;
            taken.map_err(|error| error.to_string())
        } else {
            let told = self.deps.part.log.tell_difference(*group, member, part, *at, *digest).await;
            told.map_err(|error| error.to_string())
        };
        if let Err(error) = told {
            tracing::warn!(%tenant, member = member.0, error, "the replica that differs stays in service");
        }
    }
}

impl Registry {
    /// Hashes what the tenant's replica here held at a position, or where it noted it last. What it comes
    /// to in [`HASH_TIME`] is kept: whoever asks again has it gone on with.
    pub(super) async fn hash(
        &self,
        group: GroupId,
        tenant: TenantId,
        at: Option<Position>,
    ) -> Result<Option<DigestCursor>, StoreError> {
        let (until, part) = (Instant::now() + HASH_TIME, StateMachineId::Tenant(tenant));
        let starting = || unreachable(part, "the node is starting".to_owned());
        let activation = self.activation(group, tenant).ok_or_else(starting)?;
        // Whatever comes of it: a replica that cannot be hashed costs no entry at each look.
        activation.note_comparison();
        let Ok(_one_at_a_time) = timeout_at(until, self.hashing.lock()).await else {
            return Err(unreachable(part, "others are being hashed".to_owned()));
        };
        let mut held = match at.and_then(|at| activation.digest(at)) {
            Some(held) => held,
            None => match self.ask(group, part, |reply| ReplicaRequest::Noted(at, reply)).await? {
                Some(noted) => noted,
                None => return Ok(None),
            },
        };
        while held.digest().is_none() && Instant::now() < until {
            held = self.ask(group, part, |reply| ReplicaRequest::Hash(held, reply)).await?;
            activation.put_digest(held.clone());
            tokio::time::sleep(PIECE_PAUSE).await;
        }
        activation.put_digest(held.clone());
        Ok(Some(held))
    }

    /// Takes a replica out of service that held `digest` at a position: two others held something else.
    pub(super) async fn take_out(
        &self,
        group: GroupId,
        part: StateMachineId,
        at: Position,
        digest: StateDigest,
    ) -> Result<(), StoreError> {
        let held = match part {
            StateMachineId::Tenant(tenant) => self.activation(group, tenant),
            StateMachineId::System => None,
        };
        // It may have been rebuilt since, from one of the others.
        let held = held.and_then(|activation| activation.digest(at)?.digest());
        if held != Some(digest) {
            return Err(unreachable(part, "it does not hold that any more".to_owned()));
        }
        self.ask(group, part, |reply| ReplicaRequest::Distrust(at, reply)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::raft_ids;

    #[test]
    fn only_who_differs_from_two_that_agree_is_odd() {
        let odd = |members: &[u64]| Verdict::Odd(raft_ids(members));
        for (digests, expected) in [
            (&[][..], Verdict::Alike),
            (&[7], Verdict::Alike),
            (&[7, 7], Verdict::Alike),
            (&[7, 7, 7], Verdict::Alike),
            (&[7, 8], Verdict::Unclear),
            (&[7, 8, 9], Verdict::Unclear),
            (&[8, 7, 7], odd(&[0])),
            (&[7, 8, 7], odd(&[1])),
            (&[9, 9, 7], odd(&[2])),
            (&[7, 7, 8, 9], odd(&[2, 3])),
            (&[7, 7, 8, 8], Verdict::Unclear),
        ] {
            let by_member =
                (0..).map(RaftId).zip(digests.iter().map(|digest| StateDigest([*digest; 32])));
            assert_eq!(judge(&by_member.collect()), expected, "{digests:?}");
        }
    }
}
