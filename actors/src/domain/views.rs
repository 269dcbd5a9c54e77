//! What actors tell about their state: plain data for the edge to show.

use crate::domain::ids::{JobId, NodeId, RunId, TenantId, TokenId};
use crate::domain::json::Json;
use crate::domain::lock::{Holder, LockView};
use crate::domain::page::{ITEM_FRAME_BYTES, JsonSize, json_bytes, quoted_bytes};
use crate::domain::region::Region;
use crate::domain::run::RunStatus;
use crate::domain::tenant::{Quota, TenantRecord};
use crate::domain::time::Timestamp;

impl JsonSize for RunView {
    fn json_bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_deref().map_or(0, quoted_bytes);
        let steps = self.steps.iter().map(|step| {
            let own = quoted_bytes(&step.id) + text(&step.error);
            ITEM_FRAME_BYTES + own + json_bytes(step.output.as_ref())
        });
        let carried = json_bytes(Some(&self.input)) + json_bytes(self.output.as_ref());
        let own = quoted_bytes(&self.work_item_id) + text(&self.workflow_name) + text(&self.error);
        ITEM_FRAME_BYTES + carried + own + steps.sum::<usize>()
    }
}

impl JsonSize for WorkflowView {
    fn json_bytes(&self) -> usize {
        ITEM_FRAME_BYTES + quoted_bytes(&self.name) + json_bytes(Some(&self.spec))
    }
}

impl JsonSize for JobView {
    fn json_bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_deref().map_or(0, quoted_bytes);
        let own = quoted_bytes(&self.name) + text(&self.description) + text(&self.created_by);
        ITEM_FRAME_BYTES + own + json_bytes(Some(&self.workflow))
    }
}

impl JsonSize for TenantView {
    fn json_bytes(&self) -> usize {
        let record = &self.record;
        let texts = [&record.name, &record.description, record.region.as_str()];
        let texts: usize = texts.into_iter().map(quoted_bytes).sum();
        let metadata = json_bytes(Some(&record.settings.metadata));
        2 * ITEM_FRAME_BYTES + texts + metadata + 64 * self.replicas.len()
    }
}

impl JsonSize for LockView {
    fn json_bytes(&self) -> usize {
        let texts = quoted_bytes(self.key.as_str()) + quoted_bytes(self.holder.as_str());
        ITEM_FRAME_BYTES + texts + json_bytes(Some(&self.metadata))
    }
}

impl JsonSize for JoinTokenView {
    fn json_bytes(&self) -> usize {
        ITEM_FRAME_BYTES
    }
}

/// A tenant.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantView {
    /// Its id.
    pub id: TenantId,
    /// Version of its record, for `ETag`.
    pub version: u64,
    /// Its record.
    pub record: TenantRecord,
    /// The group it lives in.
    pub group: u32,
    /// The node that leads that group, if known.
    pub leader: Option<NodeId>,
    /// The nodes with a replica.
    pub replicas: Vec<NodeId>,
    /// The region that it is on its way to.
    pub moving_to: Option<Region>,
}

/// How much of a quota is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Which.
    pub quota: Quota,
    /// Its limit; `None` is unlimited.
    pub limit: Option<u64>,
    /// What is used.
    pub used: u64,
    /// When it resets, for the per-day and per-minute quotas.
    pub resets_at: Option<Timestamp>,
}

/// The state of the per-minute quota after a request, for the `RateLimit-*` headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests in any 60 s.
    pub limit: u64,
    /// Requests left now.
    pub remaining: u64,
    /// Seconds until more are left.
    pub reset_secs: u64,
}

/// A run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunView {
    /// Its id.
    pub id: RunId,
    /// What it works on.
    pub work_item_id: String,
    /// The named workflow it was started from.
    pub workflow_name: Option<String>,
    /// Where it stands.
    pub status: RunStatus,
    /// When it was accepted.
    pub started_at: Timestamp,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// Its input.
    pub input: Json,
    /// Outputs of the steps nobody depends on, by step id, once completed.
    pub output: Option<Json>,
    /// Why it failed or was cancelled.
    pub error: Option<String>,
    /// Its steps, in the order of the spec.
    pub steps: Vec<StepView>,
}

/// A step of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct StepView {
    /// Its id in the workflow.
    pub id: String,
    /// `pending running completed failed skipped`.
    pub status: &'static str,
    /// When its first attempt began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// The present attempt, from 1; 0 before the first.
    pub attempt: u32,
    /// The last error.
    pub error: Option<String>,
    /// Its output.
    pub output: Option<Json>,
    /// `timer`, `retry`, `resume`; nothing while it waits for nothing.
    pub waiting_for: Option<&'static str>,
}

/// A named workflow.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkflowView {
    /// Its name.
    pub name: String,
    /// Its version, from 1.
    pub version: u64,
    /// Its spec.
    pub spec: Json,
    /// When this version was written.
    pub created_at: Timestamp,
}

/// A job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// Its name.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Its workflow spec.
    pub workflow: Json,
    /// Who made it, as the client said.
    pub created_by: Option<String>,
    /// When.
    pub created_at: Timestamp,
    /// The run started with it.
    pub run_id: Option<RunId>,
}

/// A lock and how many wait for it.
#[derive(Debug, Clone, PartialEq)]
pub struct LockDetail {
    /// The lock.
    pub lock: LockView,
    /// How many wait.
    pub waiters: u64,
}

/// Answer to an attempt to take a lock.
#[derive(Debug, Clone, PartialEq)]
pub enum Acquired {
    /// It is the caller's.
    Yes(LockView),
    /// Another holds it.
    HeldByOther {
        /// Who.
        holder: Holder,
        /// Until when, unless renewed.
        expires_at: Timestamp,
    },
}

/// A node of the cluster, or one registered over HTTP.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeView {
    /// Its id.
    pub id: NodeId,
    /// Address of its API.
    pub address: String,
    /// Where other nodes reach it; `None` for nodes registered over HTTP.
    pub node_addr: Option<String>,
    /// Its region.
    pub region: Region,
    /// How it is.
    pub status: NodeStatus,
    /// Whether it is being removed: its replicas are given to others first.
    pub is_leaving: bool,
    /// What it is in the system group.
    pub role: NodeRole,
    /// When it was last heard of.
    pub last_heartbeat: Timestamp,
    /// When it started or was registered.
    pub started_at: Timestamp,
    /// Labels or metadata: a JSON object.
    pub metadata: Json,
}

/// A new join token.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJoinToken {
    /// Its id.
    pub id: TokenId,
    /// The token itself, shown once: not when the call is repeated.
    pub token: Option<String>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// How many nodes it admits; `None` is any number.
    pub uses: Option<u32>,
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq)]
pub struct JoinTokenView {
    /// Its id.
    pub id: TokenId,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// How many nodes it still admits; `None` is any number.
    pub uses_left: Option<u32>,
}

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeStatus {
    /// Heard of.
    Healthy,
    /// Late, or only partly reachable.
    Degraded,
    /// Silent.
    Unhealthy,
    /// Said goodbye.
    Offline,
}

impl NodeStatus {
    /// The name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "Healthy",
            Self::Degraded => "Degraded",
            Self::Unhealthy => "Unhealthy",
            Self::Offline => "Offline",
        }
    }
}

/// What a node is in the system group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeRole {
    /// Leads.
    Leader,
    /// Follows.
    Follower,
    /// Campaigns.
    Candidate,
}

impl NodeRole {
    /// The name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leader => "Leader",
            Self::Follower => "Follower",
            Self::Candidate => "Candidate",
        }
    }
}

/// Who leads the cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct LeaderView {
    /// The leader, while a quorum confirms it.
    pub leader: Option<NodeView>,
    /// Raft term of the system group.
    pub term: u64,
}

/// How the cluster is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterHealth {
    /// Every listed node.
    pub total_nodes: u64,
    /// Those that are `Healthy`.
    pub healthy_nodes: u64,
    /// The leader, while a quorum confirms it.
    pub leader: Option<NodeId>,
    /// Voters of the system group.
    pub voters: u64,
    /// How many of them have to agree.
    pub quorum: u64,
    /// How many voters may fail at this moment without stopping anything: the least over all
    /// groups.
    pub can_lose: u64,
}

/// A replication group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupView {
    /// Its id.
    pub id: u32,
    /// Region it serves; group 0 serves all and says `system`.
    pub region: String,
    /// Whether it works, as the node that is asked sees it.
    pub status: GroupWorks,
    /// Its leader.
    pub leader: Option<NodeId>,
    /// Its Raft term.
    pub term: u64,
    /// Its replicas.
    pub replicas: Vec<ReplicaView>,
    /// Tenants in it.
    pub tenants: u64,
}

/// Whether a group works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupWorks {
    /// It is led, and enough of its voters are heard.
    Ok,
    /// Enough of its voters are heard, and nobody is known to lead it: there will be somebody soon.
    NoLeader,
    /// Too few of its voters are heard: it takes nothing until some come back.
    NoQuorum,
}

impl GroupWorks {
    /// Gives its name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NoLeader => "no_leader",
            Self::NoQuorum => "no_quorum",
        }
    }
}

/// A replica of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaView {
    /// On which node.
    pub node: Option<NodeId>,
    /// `voter` or `learner`.
    pub role: &'static str,
    /// Index applied.
    pub applied: u64,
    /// Entries behind the leader.
    pub lag: u64,
}
