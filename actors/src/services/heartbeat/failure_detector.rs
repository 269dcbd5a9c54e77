//! How the other members are, from what this node hears of them and what they say of each other.
//! Pure. It suspects; it never votes.
//!
//! A ping and its answer say the same things: how long each member has been silent to the one who
//! speaks, whether it leads, and what its wall clock says. So a member that is silent to this node
//! alone can be told from one that is silent to everybody. The table of statuses is at the head of
//! the folder.
//!
//! What another says of a silence was true when it said so: the time since then is added. It counts
//! while the speaker itself has been heard within an election timeout; after that its word is as
//! old as its silence. What another says may make a member worse, when this node hears the member and
//! the other does not, and better, when the other hears the member and this node does not: either way
//! one of the links is at fault, and the member is alive.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::cluster::routing::{LeaderHint, LeaderHints};
use crate::domain::ids::{GroupId, RaftId};
use crate::domain::time::Timestamp;
use crate::domain::views::NodeStatus;
use crate::ports::GroupLead;

/// A clock that differs by more than this is wrong, milliseconds.
const CLOCK_OFFSET_MS_MAX: u64 = 500;
/// Election timeouts of silence after which a member is unhealthy.
const UNHEALTHY_TIMEOUTS: u32 = 4;

/// What a member says of itself and of the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// What its wall clock says.
    pub at: Timestamp,
    /// The groups that it leads, while a quorum confirms it.
    pub leads: Vec<GroupLead>,
    /// For how long each other member has been silent to it, milliseconds, by raft id.
    pub silent_ms: BTreeMap<RaftId, u64>,
    /// Whether its log takes what is written: not while its disk is full.
    pub has_room: bool,
    /// The groups in which a tenant's files are damaged there.
    pub damaged: BTreeSet<GroupId>,
    /// Whether there is something that others send and it has no room for, though its log takes what is written.
    /// Not part of version 3, and therefore written apart (`wire`).
    #[serde(skip)]
    pub lacks_room_for_copy: bool,
}

/// What is known of one member.
#[derive(Debug)]
struct Known {
    /// When it was last heard of, or first known.
    heard: Instant,
    /// What its last beat said, by this node's wall clock when it came.
    last: Option<(Timestamp, Heartbeat)>,
    clock_offset_ms: u64,
    /// Since when it has been unhealthy.
    unhealthy_since: Option<Instant>,
}

/// How a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberHealth {
    /// Its status.
    pub status: NodeStatus,
    /// When it was last heard of, by this node's wall clock.
    pub heard_at: Option<Timestamp>,
    /// For how long it has been unhealthy.
    pub unhealthy_for: Duration,
    /// Whether this node itself has heard of it within an election timeout.
    pub is_heard: bool,
    /// Whether its disk had room when it was last heard of.
    pub has_room: bool,
    /// Whether it lacked room for what others send when it was last heard of. It votes and leads all the same.
    pub lacks_room_for_copy: bool,
    /// The groups in which a tenant's files were damaged there when it was last heard of.
    pub damaged: BTreeSet<GroupId>,
    /// For how long this node itself has not heard of it.
    pub silent_for: Duration,
    /// For how long each other member has been silent to it, as it says; nothing when it has not
    /// been heard of within an election timeout.
    pub silent_to_it: BTreeMap<RaftId, Duration>,
}

impl MemberHealth {
    /// Tells which status people are shown: somebody should look at a member that lacks room, though nothing that the
    /// cluster decides depends on that.
    pub const fn shown(&self) -> NodeStatus {
        match self.status {
            NodeStatus::Healthy if self.lacks_room_for_copy => NodeStatus::Degraded,
            status => status,
        }
    }
}

impl Known {
    /// Tells for how long each other member has been silent to this one: what it said, and the time
    /// since then. Nothing when that is `late`.
    fn silent_to_it(&self, late: Duration, now: Instant) -> BTreeMap<RaftId, Duration> {
        let age = now.duration_since(self.heard);
        let told = self.last.iter().filter(|_| age < late).flat_map(|(_, beat)| &beat.silent_ms);
        told.map(|(id, ms)| (*id, Duration::from_millis(*ms) + age)).collect()
    }

    fn has_room(&self) -> bool {
        self.last.as_ref().is_none_or(|(_, beat)| beat.has_room)
    }

    fn lacks_room_for_copy(&self) -> bool {
        self.last.as_ref().is_some_and(|(_, beat)| beat.lacks_room_for_copy)
    }
}

/// All members but this one.
#[derive(Debug)]
pub(super) struct FailureDetector {
    election_timeout: Duration,
    known: BTreeMap<RaftId, Known>,
}

impl FailureDetector {
    pub(super) const fn new(election_timeout: Duration) -> Self {
        Self { election_timeout, known: BTreeMap::new() }
    }

    /// Learns who there is. Who is new has its full time before it.
    pub(super) fn set(&mut self, raft_ids: &[RaftId], now: Instant) {
        self.known.retain(|id, _| raft_ids.contains(id));
        for id in raft_ids {
            self.known.entry(*id).or_insert_with(|| Known {
                heard: now,
                last: None,
                clock_offset_ms: 0,
                unhealthy_since: None,
            });
        }
    }

    /// Whom to ping.
    pub(super) fn ids(&self) -> Vec<RaftId> {
        self.known.keys().copied().collect()
    }

    /// For how long each has been silent, to tell the others.
    pub(super) fn silent_ms(&self, now: Instant) -> BTreeMap<RaftId, u64> {
        let silence = |known: &Known| now.duration_since(known.heard).as_millis();
        let millis = |ms: u128| u64::try_from(ms).unwrap_or(u64::MAX);
        self.known.iter().map(|(id, known)| (*id, millis(silence(known)))).collect()
    }

    /// A beat came. `offset_ms` is how far its clock is from this node's, where that is known.
    pub(super) fn heard(
        &mut self,
        from: RaftId,
        beat: Heartbeat,
        offset_ms: Option<u64>,
        now: Instant,
        at: Timestamp,
    ) {
        let Some(known) = self.known.get_mut(&from) else { return };
        known.heard = now;
        known.last = Some((at, beat));
        known.unhealthy_since = None;
        if let Some(offset_ms) = offset_ms {
            known.clock_offset_ms = offset_ms;
        }
    }

    /// Who says that it leads, with the highest term of each group.
    pub(super) fn hints(&self) -> LeaderHints {
        let mut hints: BTreeMap<GroupId, LeaderHint> = BTreeMap::new();
        for (id, known) in &self.known {
            let leads = known.last.as_ref().map_or(&[][..], |(_, beat)| &beat.leads);
            for GroupLead { group, term, voters } in leads {
                if hints.get(group).is_none_or(|hint| hint.term < *term) {
                    let (raft_id, term, heard) = (*id, *term, known.heard);
                    let hint = LeaderHint { raft_id, term, heard, voters: voters.clone() };
                    hints.insert(*group, hint);
                }
            }
        }
        LeaderHints::new(hints)
    }

    /// How everybody is now.
    pub(super) fn health(&mut self, now: Instant) -> BTreeMap<RaftId, MemberHealth> {
        let late = self.election_timeout;
        let statuses: Vec<(RaftId, NodeStatus)> =
            self.known.keys().map(|id| (*id, self.status(*id, now))).collect();
        let mut all = BTreeMap::new();
        for (id, status) in statuses {
            let Some(known) = self.known.get_mut(&id) else { continue };
            if status == NodeStatus::Unhealthy {
                known.unhealthy_since.get_or_insert(now);
            } else {
                known.unhealthy_since = None;
            }
            let since = known.unhealthy_since.map(|since| now.duration_since(since));
            let health = MemberHealth {
                status,
                heard_at: known.last.as_ref().map(|(at, _)| *at),
                unhealthy_for: since.unwrap_or_default(),
                is_heard: known.last.is_some() && now.duration_since(known.heard) < late,
                has_room: known.has_room(),
                lacks_room_for_copy: known.lacks_room_for_copy(),
                damaged: known.last.as_ref().map(|(_, it)| it.damaged.clone()).unwrap_or_default(),
                silent_for: now.duration_since(known.heard),
                silent_to_it: known.silent_to_it(late, now),
            };
            all.insert(id, health);
        }
        all
    }

    fn status(&self, id: RaftId, now: Instant) -> NodeStatus {
        let Some(known) = self.known.get(&id) else { return NodeStatus::Unhealthy };
        let silence = now.duration_since(known.heard);
        let late = self.election_timeout;
        let mut others = self.silences_told(id, now).peekable();
        let has_others = others.peek().is_some();
        let (mut least, mut most) = (Duration::MAX, Duration::ZERO);
        for told in others {
            (least, most) = (least.min(told), most.max(told));
        }
        if silence < late {
            let is_cut_off = has_others && most >= late;
            let is_clock_off = known.clock_offset_ms > CLOCK_OFFSET_MS_MAX;
            // Of one that has not been heard of since this node started nothing good is known.
            let is_unheard = known.last.is_none();
            return if is_unheard || is_cut_off || is_clock_off || !known.has_room() {
                NodeStatus::Degraded
            } else {
                NodeStatus::Healthy
            };
        }
        if silence < late * UNHEALTHY_TIMEOUTS || (has_others && least < late) {
            NodeStatus::Degraded
        } else {
            NodeStatus::Unhealthy
        }
    }

    /// For how long `id` has been silent to others who have been heard of lately.
    fn silences_told(&self, id: RaftId, now: Instant) -> impl Iterator<Item = Duration> {
        self.known.iter().filter(move |(other, _)| **other != id).filter_map(move |(_, other)| {
            let age = now.duration_since(other.heard);
            let (_, beat) = other.last.as_ref().filter(|_| age < self.election_timeout)?;
            Some(Duration::from_millis(*beat.silent_ms.get(&id)?) + age)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::voters::Voters;

    const T: Duration = Duration::from_millis(500);

    fn beat(silent_ms: &[(u64, u64)], leads: Option<u64>) -> Heartbeat {
        let silent_ms = silent_ms.iter().map(|(id, ms)| (RaftId(*id), *ms)).collect();
        let voters = Voters::of([1, 2, 3].map(RaftId));
        let lead = |term| GroupLead { group: GroupId::SYSTEM, term, voters };
        let leads = leads.map(lead).into_iter().collect();
        Heartbeat {
            at: Timestamp(0),
            leads,
            silent_ms,
            has_room: true,
            damaged: BTreeSet::new(),
            lacks_room_for_copy: false,
        }
    }

    fn three(now: Instant) -> FailureDetector {
        let mut members = FailureDetector::new(T);
        members.set(&[2, 3].map(RaftId), now);
        for id in [2, 3].map(RaftId) {
            members.heard(id, beat(&[], None), None, now, Timestamp(0));
        }
        members
    }

    fn statuses(members: &mut FailureDetector, now: Instant) -> Vec<NodeStatus> {
        members.health(now).values().map(|health| health.status).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn silence_makes_late_and_then_unhealthy() {
        let start = Instant::now();
        let mut members = three(start);
        let at = |timeouts: u32| start + T * timeouts;
        assert_eq!(statuses(&mut members, start), [NodeStatus::Healthy; 2]);
        assert_eq!(statuses(&mut members, at(1)), [NodeStatus::Degraded; 2]);
        assert_eq!(statuses(&mut members, at(4)), [NodeStatus::Unhealthy; 2]);
        assert_eq!(members.health(at(6))[&RaftId(2)].unhealthy_for, T * 2);
        members.heard(RaftId(2), beat(&[], None), None, at(7), Timestamp(9));
        let health = &members.health(at(7))[&RaftId(2)];
        assert_eq!((health.status, health.heard_at), (NodeStatus::Healthy, Some(Timestamp(9))));
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_not_been_heard_of_is_not_healthy() {
        let start = Instant::now();
        let mut members = FailureDetector::new(T);
        members.set(&[RaftId(2)], start);
        assert_eq!(statuses(&mut members, start), [NodeStatus::Degraded]);
        assert_eq!(statuses(&mut members, start + T * 4), [NodeStatus::Unhealthy]);
        members.heard(RaftId(2), beat(&[], None), None, start + T, Timestamp(0));
        assert_eq!(statuses(&mut members, start + T), [NodeStatus::Healthy]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_cut_off_from_one_is_not_taken_for_dead() {
        let start = Instant::now();
        let mut members = three(start);
        let now = start + T * 9;
        // 2 hears 3, this node does not.
        members.heard(RaftId(2), beat(&[(3, 10)], None), None, now, Timestamp(0));
        assert_eq!(statuses(&mut members, now), [NodeStatus::Healthy, NodeStatus::Degraded]);
        // This node hears 3, 2 does not.
        members.heard(RaftId(3), beat(&[(2, 10)], None), None, now, Timestamp(0));
        members.heard(RaftId(2), beat(&[(3, 5000)], None), None, now, Timestamp(0));
        assert_eq!(statuses(&mut members, now), [NodeStatus::Healthy, NodeStatus::Degraded]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_member_hears_of_the_others_is_known_while_it_is_heard_itself() {
        let start = Instant::now();
        let mut members = three(start);
        members.heard(RaftId(2), beat(&[(1, 10), (3, 30_000)], None), None, start, Timestamp(0));
        let health = members.health(start + T / 2);
        assert_eq!((health[&RaftId(2)].silent_for, health[&RaftId(3)].silent_for), (T / 2, T / 2));
        let ms = Duration::from_millis;
        let told = BTreeMap::from([(RaftId(1), ms(10) + T / 2), (RaftId(3), ms(30_000) + T / 2)]);
        assert_eq!(health[&RaftId(2)].silent_to_it, told);
        assert!(health[&RaftId(3)].silent_to_it.is_empty());
        assert!(members.health(start + T)[&RaftId(2)].silent_to_it.is_empty(), "too long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn hearsay_ages() {
        let start = Instant::now();
        let mut members = three(start);
        let now = start + T * 9;
        // 2 said, almost a timeout ago, that it had heard 3 a moment before.
        members.heard(RaftId(2), beat(&[(3, 10)], None), None, now, Timestamp(0));
        let later = now + T * 99 / 100;
        let fresh = members.health(now + T / 2)[&RaftId(3)].status;
        assert_eq!(fresh, NodeStatus::Degraded, "silent to this node alone");
        assert_eq!(
            members.health(later)[&RaftId(3)].status,
            NodeStatus::Unhealthy,
            "to 2 as well by now"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_clock_degrades() {
        let start = Instant::now();
        let mut members = three(start);
        members.heard(RaftId(2), beat(&[], None), Some(501), start, Timestamp(0));
        assert_eq!(statuses(&mut members, start), [NodeStatus::Degraded, NodeStatus::Healthy]);
    }

    /// It would be no leader, and no help to others, otherwise.
    #[tokio::test(start_paused = true)]
    async fn who_lacks_room_for_a_copy_only_is_healthy_and_known_for_it() {
        let start = Instant::now();
        let mut members = three(start);
        let lacking = Heartbeat { lacks_room_for_copy: true, ..beat(&[], None) };
        members.heard(RaftId(2), lacking, None, start, Timestamp(0));
        let full = Heartbeat { has_room: false, ..beat(&[], None) };
        members.heard(RaftId(3), full, None, start, Timestamp(0));
        let all = members.health(start);
        let said = |id| {
            let health = &all[&RaftId(id)];
            (health.status, health.shown(), health.has_room, health.lacks_room_for_copy)
        };
        assert_eq!(said(2), (NodeStatus::Healthy, NodeStatus::Degraded, true, true));
        assert_eq!(said(3), (NodeStatus::Degraded, NodeStatus::Degraded, false, false));
    }

    #[tokio::test(start_paused = true)]
    async fn the_claim_of_the_highest_term_counts() {
        let start = Instant::now();
        let mut members = three(start);
        assert!(members.hints().is_empty());
        members.heard(RaftId(2), beat(&[], Some(4)), None, start, Timestamp(0));
        members.heard(RaftId(3), beat(&[], Some(5)), None, start, Timestamp(0));
        let voters = Voters::of([1, 2, 3].map(RaftId));
        let hint = LeaderHint { raft_id: RaftId(3), term: 5, heard: start, voters };
        assert_eq!(members.hints().get(&GroupId::SYSTEM), Some(&hint));
        members.set(&[RaftId(2)], start);
        assert_eq!(members.hints()[&GroupId::SYSTEM].raft_id, RaftId(2));
    }
}
