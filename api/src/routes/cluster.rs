//! `/api/cluster`: nodes, leadership, health, groups.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shiioo_actors::domain::ids::NodeId;
use shiioo_actors::domain::region::Region;
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::domain::views::{GroupView, NodeView, ReplicaView};
use shiioo_actors::handles::NewNode;
use shiioo_actors::ports::error::CallError;
use utoipa::ToSchema;

use crate::input::extract::{InPath, PageQuery, Paging};
use crate::input::fields::{Address, METADATA_BYTES_MAX, Parsed};
use crate::input::payload::Payload;
use crate::output::page::List;
use crate::output::problem::Problem;
use crate::output::reply::{Answer, MessageBody, Raw, Reply, Shown};
use crate::request::ctx::Ctx;
use crate::routes::builder::Route;
use crate::server::declaration::{Credential, RouteOwner};

/// Lists the routes on nodes, leadership and health.
pub(crate) fn routes() -> Vec<Route> {
    let (system, node) = (RouteOwner::SystemGroup, RouteOwner::ThisNode);
    vec![
        Route::post("/api/cluster/nodes", register, __path_register)
            .served(system, Credential::Admin),
        Route::get("/api/cluster/nodes", list, __path_list)
            .served(system, Credential::Admin)
            .page(),
        Route::get("/api/cluster/nodes/{node_id}", get, __path_get)
            .served(system, Credential::Admin),
        Route::delete("/api/cluster/nodes/{node_id}", remove, __path_remove)
            .served(system, Credential::Admin),
        Route::post("/api/cluster/nodes/{node_id}/heartbeat", heartbeat, __path_heartbeat)
            .served(system, Credential::Admin),
        // A second attempt would have the next leader step down as well.
        Route::post("/api/cluster/leader/step-down", step_down, __path_step_down)
            .served(RouteOwner::SystemGroupOnce, Credential::Admin),
        // Every node tells these from its own view, so that they work without a quorum.
        Route::get("/api/cluster/leader", leader, __path_leader).served(node, Credential::Admin),
        Route::get("/api/cluster/health", health, __path_health).served(node, Credential::Admin),
        Route::get("/api/cluster/groups", groups, __path_groups).served(node, Credential::Admin),
    ]
}

/// A node that heartbeats over HTTP.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = NewNode)]
pub(crate) struct NewNodeBody {
    /// Where it is; never dialled.
    #[schema(value_type = String, min_length = 1, max_length = 2048)]
    address: Address,
    /// Its region; `default` if not given.
    #[schema(value_type = Option<String>, pattern = "^[a-z0-9-]{1,63}$")]
    region: Option<Parsed<Region>>,
    /// Free text by name.
    metadata: Option<BTreeMap<String, String>>,
}

impl NewNodeBody {
    fn into_new(self) -> Result<NewNode, Problem> {
        let metadata = self.metadata.unwrap_or_default();
        let bytes: usize = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > METADATA_BYTES_MAX {
            let right = format_args!("must be at most {METADATA_BYTES_MAX} bytes, is {bytes}");
            return Err(Problem::invalid_field("metadata", right));
        }
        Ok(NewNode {
            address: self.address.0,
            region: self.region.map(|region| region.0).unwrap_or_default(),
            metadata,
        })
    }
}

/// A node.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Node)]
pub(crate) struct NodeBody {
    /// `node-<uuid>`.
    #[schema(value_type = String)]
    id: Shown<NodeId>,
    /// Address of its API.
    address: String,
    /// Where other nodes reach it; absent for nodes registered over HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_addr: Option<String>,
    region: String,
    /// `Healthy`, `Degraded`, `Unhealthy` or `Offline`.
    status: &'static str,
    /// `true` while the node is being removed; absent otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    leaving: bool,
    /// `Leader`, `Follower` or `Candidate`.
    role: &'static str,
    #[schema(value_type = String, format = DateTime)]
    last_heartbeat: Shown<Timestamp>,
    #[schema(value_type = String, format = DateTime)]
    started_at: Shown<Timestamp>,
    #[schema(value_type = Object)]
    metadata: Raw,
}

impl From<NodeView> for NodeBody {
    fn from(view: NodeView) -> Self {
        Self {
            id: Shown(view.id),
            address: view.address,
            node_addr: view.node_addr,
            region: view.region.into(),
            status: view.status.name(),
            leaving: view.is_leaving,
            role: view.role.name(),
            last_heartbeat: Shown(view.last_heartbeat),
            started_at: Shown(view.started_at),
            metadata: Raw(view.metadata),
        }
    }
}

/// A heartbeat was heard.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HeartbeatHeard)]
pub(crate) struct HeartbeatBody {
    message: &'static str,
    /// How often to send one.
    heartbeat_interval_secs: f64,
}

/// Nodes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = NodeList)]
pub(crate) struct NodesBody {
    nodes: Vec<NodeBody>,
    next_cursor: Option<String>,
}

/// Who leads the cluster.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Leader)]
pub(crate) struct LeaderBody {
    /// `null` while no quorum confirms one.
    leader: Option<NodeBody>,
    term: u64,
}

/// How the cluster is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ClusterHealth)]
pub(crate) struct HealthBody {
    /// Every listed node.
    total_nodes: u64,
    healthy_nodes: u64,
    has_leader: bool,
    #[schema(value_type = Option<String>)]
    leader_id: Option<Shown<NodeId>>,
    /// Voters of the system group.
    voters: u64,
    /// How many of them have to agree.
    quorum: u64,
    /// How many voters may fail at this moment without stopping anything: the least over all
    /// groups. A group with one voter or two can lose none.
    can_lose: u64,
}

/// A replica of a group.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Replica)]
pub(crate) struct ReplicaBody {
    #[schema(value_type = Option<String>)]
    node_id: Option<Shown<NodeId>>,
    /// `voter` or `learner`.
    role: &'static str,
    /// Index applied.
    applied: u64,
    /// Entries behind the leader.
    lag: u64,
}

impl From<ReplicaView> for ReplicaBody {
    fn from(view: ReplicaView) -> Self {
        Self {
            node_id: view.node.map(Shown),
            role: view.role,
            applied: view.applied,
            lag: view.lag,
        }
    }
}

/// A replication group.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Group)]
pub(crate) struct GroupBody {
    id: u32,
    region: String,
    /// `ok`; `no_leader`, which passes; or `no_quorum`: too few of its voters are heard.
    status: &'static str,
    #[schema(value_type = Option<String>)]
    leader: Option<Shown<NodeId>>,
    term: u64,
    replicas: Vec<ReplicaBody>,
    /// How many tenants are in it.
    tenants: u64,
}

impl From<GroupView> for GroupBody {
    fn from(view: GroupView) -> Self {
        Self {
            id: view.id,
            region: view.region,
            status: view.status.name(),
            leader: view.leader.map(Shown),
            term: view.term,
            replicas: view.replicas.into_iter().map(ReplicaBody::from).collect(),
            tenants: view.tenants,
        }
    }
}

/// Replication groups.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = GroupList)]
pub(crate) struct GroupsBody {
    groups: Vec<GroupBody>,
}

/// Registers a node that heartbeats over HTTP. It gets no vote and is never dialled.
#[utoipa::path(post, path = "/api/cluster/nodes", operation_id = "register_node", tag = "Cluster",
    request_body = NewNodeBody,
    responses((status = 201, description = "The node", body = NodeBody)))]
pub(crate) async fn register(ctx: Ctx, body: Payload<NewNodeBody>) -> Reply {
    let call = ctx.creating_call(&body.bytes)?;
    let created = ctx.handles()?.cluster.register(&call, body.value.into_new()?).await?;
    let id = created.resource.id;
    Answer::created(&format!("/api/cluster/nodes/{id}"), &NodeBody::from(created.resource))?
        .replayed(created.replayed)?
        .done()
}

/// Lists nodes: members in the order they joined, then those registered over HTTP.
#[utoipa::path(get, path = "/api/cluster/nodes", operation_id = "list_nodes", tag = "Cluster",
    params(PageQuery),
    responses((status = 200, description = "Nodes", body = NodesBody)))]
pub(crate) async fn list(ctx: Ctx, Paging(page): Paging) -> Reply {
    let listed = List::new("nodes", "cluster");
    let page = ctx.handles()?.cluster.nodes(&ctx.call(), listed.open(page)?).await?;
    let (nodes, next_cursor) = listed.close(page);
    Answer::ok(&NodesBody { nodes, next_cursor })?.done()
}

/// One node.
#[utoipa::path(get, path = "/api/cluster/nodes/{node_id}", operation_id = "get_node",
    tag = "Cluster", responses((status = 200, description = "The node", body = NodeBody)))]
pub(crate) async fn get(ctx: Ctx, InPath(id): InPath<NodeId>) -> Reply {
    let node = ctx.handles()?.cluster.node(&ctx.call(), id).await?;
    Answer::ok(&NodeBody::from(node))?.done()
}

/// Removes a node; a running member is drained first.
#[utoipa::path(delete, path = "/api/cluster/nodes/{node_id}", operation_id = "remove_node",
    tag = "Cluster", responses((status = 200, description = "Removed", body = MessageBody)))]
pub(crate) async fn remove(ctx: Ctx, InPath(id): InPath<NodeId>) -> Reply {
    ctx.handles()?.cluster.remove(&ctx.call(), id).await?;
    Answer::message(format!("Node {id} removed successfully"))
}

/// A node registered over HTTP is alive.
#[utoipa::path(post, path = "/api/cluster/nodes/{node_id}/heartbeat",
    operation_id = "heartbeat_node", tag = "Cluster",
    responses((status = 200, description = "Acknowledged", body = HeartbeatBody)))]
pub(crate) async fn heartbeat(ctx: Ctx, InPath(id): InPath<NodeId>) -> Reply {
    ctx.handles()?.cluster.heartbeat(&ctx.call(), id).await?;
    Answer::ok(&HeartbeatBody {
        message: "Heartbeat acknowledged",
        heartbeat_interval_secs: ctx.heartbeat_interval().as_secs_f64(),
    })?
    .done()
}

/// Who leads the cluster, while a quorum confirms it.
#[utoipa::path(get, path = "/api/cluster/leader", operation_id = "get_leader", tag = "Cluster",
    responses((status = 200, description = "The leader", body = LeaderBody)))]
pub(crate) async fn leader(ctx: Ctx) -> Reply {
    let view = ctx.handles()?.cluster.leader(&ctx.call()).await?;
    Answer::ok(&LeaderBody { leader: view.leader.map(NodeBody::from), term: view.term })?.done()
}

/// Hands leadership over; answers once another node leads.
#[utoipa::path(post, path = "/api/cluster/leader/step-down", operation_id = "step_down",
    tag = "Cluster", responses((status = 200, description = "Another leads", body = MessageBody)))]
pub(crate) async fn step_down(ctx: Ctx) -> Reply {
    ctx.handles()?.cluster.step_down(&ctx.call()).await?;
    Answer::message("Leader stepped down successfully")
}

/// How the cluster is, from the local view where there is no quorum.
#[utoipa::path(get, path = "/api/cluster/health", operation_id = "get_cluster_health",
    tag = "Cluster", responses((status = 200, description = "Health", body = HealthBody)))]
pub(crate) async fn health(ctx: Ctx) -> Reply {
    let view = ctx.in_time(ctx.handles()?.cluster.health()).await;
    let view = view.ok_or(CallError::DeadlineExceeded)?;
    Answer::ok(&HealthBody {
        total_nodes: view.total_nodes,
        healthy_nodes: view.healthy_nodes,
        has_leader: view.leader.is_some(),
        leader_id: view.leader.map(Shown),
        voters: view.voters,
        quorum: view.quorum,
        can_lose: view.can_lose,
    })?
    .done()
}

/// The replication groups of this node.
#[utoipa::path(get, path = "/api/cluster/groups", operation_id = "list_groups", tag = "Cluster",
    responses((status = 200, description = "Groups", body = GroupsBody)))]
pub(crate) async fn groups(ctx: Ctx) -> Reply {
    let groups = ctx.handles()?.cluster.groups(&ctx.call()).await?;
    let groups = groups.into_iter().map(GroupBody::from).collect();
    Answer::ok(&GroupsBody { groups })?.done()
}
