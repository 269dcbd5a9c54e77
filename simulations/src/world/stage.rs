//! What a script does to a world and sees of it.

use std::collections::BTreeMap;

use shiioo_actors::domain::ids::{GroupId, RaftId};
use shiioo_actors::ports::GroupStatus;
use shiioo_storage::disk::DiskCopy;

use super::{NodeHost, NodeState, World};

impl World {
    /// Leaves processes that have ended as they are until [`Self::start`].
    pub(crate) fn stay_down(&mut self) {
        self.stays_down = true;
    }

    /// The node in a place.
    pub(crate) fn host(&self, at: usize) -> &NodeHost {
        &self.seats[at].host
    }

    /// Whether its process is there.
    pub(crate) fn is_up(&self, at: usize) -> bool {
        self.seats[at].is_up()
    }

    /// Whether it does its work.
    pub(crate) fn runs(&self, at: usize) -> bool {
        self.is_up(at) && self.host(at).is_ready()
    }

    /// Starts its process, if there is none.
    pub(crate) fn start(&mut self, at: usize) {
        if !self.is_up(at) {
            self.seats[at].state = NodeState::Down(self.sim.elapsed());
        }
    }

    /// Nothing passes from one node to another, until [`Self::unblock`].
    pub(crate) fn block(&mut self, from: usize, to: usize) {
        self.sim.partition_oneway(self.host(from).name(), self.host(to).name());
    }

    /// The end of that.
    pub(crate) fn unblock(&mut self, from: usize, to: usize) {
        self.sim.repair_oneway(self.host(from).name(), self.host(to).name());
    }

    /// No file on its disk can grow, or each can again.
    pub(crate) fn fill_disk(&mut self, at: usize, full: bool) {
        self.host(at).disk.set_capacity(full.then_some(0));
    }

    /// Puts a copy in the place of a folder of its disk, after a power cut.
    pub(crate) fn replace(&mut self, at: usize, copy: &DiskCopy) {
        self.seats[at].host.put_back(copy);
        self.bring_down(at, "power is gone, and a folder is another");
    }

    /// The place of the node that leads the system group in the highest term that one says it
    /// leads, with that term.
    pub(crate) fn leader(&self) -> Option<(usize, u64)> {
        let leads = |at: usize| {
            let status = self.system_group(at)?;
            let is_own = status.leader.is_some_and(|leader| self.host(at).is_member(leader));
            is_own.then_some((at, status.term))
        };
        (0..self.seats.len()).filter_map(leads).max_by_key(|(_, term)| *term)
    }

    /// Whether a node follows that leader of that term.
    pub(crate) fn follows(&self, at: usize, leader: usize, term: u64) -> bool {
        self.system_group(at).is_some_and(|status| {
            let known = status.leader.is_some_and(|known| self.host(leader).is_member(known));
            known && status.term == term
        })
    }

    /// Whether all nodes run and vote, no change of that is under way, and all have applied the
    /// same.
    pub(crate) fn is_whole(&self) -> bool {
        let whole = |at: usize| {
            let status = self.system_group(at).filter(|_| self.runs(at))?;
            let is_own = |raft_id: RaftId| self.host(at).is_member(raft_id);
            let votes = status.replicas.iter().filter(|replica| replica.voter).count();
            let own = status.replicas.iter().find(|replica| is_own(replica.raft_id))?;
            let settled = !status.is_changing && status.unfinished.is_none();
            (settled && votes == self.seats.len()).then_some(own.applied)
        };
        let applied: Vec<Option<u64>> = (0..self.seats.len()).map(whole).collect();
        applied.iter().all(|one| one.is_some() && *one == applied[0])
    }

    /// Who has a group that its leader does not count it among, if anybody has.
    pub(crate) fn left_over(&self) -> Option<String> {
        let is_own = |at: usize, raft_id: RaftId| self.host(at).is_member(raft_id);
        let mut led: BTreeMap<GroupId, GroupStatus> = BTreeMap::new();
        let all: Vec<(usize, GroupStatus)> = (0..self.seats.len())
            .filter(|at| self.is_up(*at))
            .flat_map(|at| self.host(at).groups().into_iter().map(move |status| (at, status)))
            .collect();
        for (at, status) in &all {
            let leads = status.leader.is_some_and(|leader| is_own(*at, leader));
            let known = led.get(&status.group).map(|known| known.term);
            if leads && known < Some(status.term) {
                led.insert(status.group, status.clone());
            }
        }
        all.into_iter().find_map(|(at, status)| {
            let replicas = &led.get(&status.group)?.replicas;
            let is_replica = replicas.iter().any(|replica| is_own(at, replica.raft_id));
            let group = status.group;
            (!is_replica).then(|| format!("{} still has group {group}", self.host(at).name()))
        })
    }

    fn system_group(&self, at: usize) -> Option<GroupStatus> {
        let groups = if self.is_up(at) { self.host(at).groups() } else { Vec::new() };
        groups.into_iter().find(|status| status.group == GroupId::SYSTEM)
    }
}
