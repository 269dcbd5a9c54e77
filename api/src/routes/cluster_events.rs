//! `/api/cluster/events`: what changes in the cluster, as server-sent events.
//!
//! Readers are few (`handles/events.rs`), and the connection of one counts as waiting for its client, so that
//! a newcomer may get its place. Of a reader that does not read nothing is kept but the changes that it was
//! handed last.

use bytes::Bytes;
use serde::Serialize;
use shiioo_actors::domain::ids::{NodeId, TenantId};
use shiioo_actors::handles::{ClusterEvent, PlacementView, Watcher};
use tokio::time::timeout;
use utoipa::ToSchema;

use crate::output::event_stream::{COMMENT, COMMENT_EVERY, Piece, Pieces, event_stream, hand_on};
use crate::output::reply::{Reply, Shown};
use crate::request::ctx::Ctx;
use crate::routes::builder::Route;
use crate::routes::cluster::NodeBody;
use crate::server::app::App;
use crate::server::declaration::{Credential, RouteOwner};

/// What a reader gets at first: from here on everything is told.
const BEGINNING: &[u8] = b": watching\n\n";

/// Lists the route.
pub(crate) fn routes() -> Vec<Route> {
    let events = Route::get("/api/cluster/events", events, __path_events);
    vec![events.served(RouteOwner::ThisNode, Credential::Admin)]
}

/// A change, by the name of its event.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = ClusterEvent)]
pub(crate) enum EventBody {
    /// `node_joined`
    Joined(NodeBody),
    /// `node_left`
    Left {
        #[schema(value_type = String)]
        id: Shown<NodeId>,
    },
    /// `node_status`
    Status {
        #[schema(value_type = String)]
        id: Shown<NodeId>,
        status: &'static str,
    },
    /// `leader_changed`
    Leader {
        #[schema(value_type = Option<String>)]
        leader: Option<Shown<NodeId>>,
        term: u64,
    },
    /// `placement_changed`
    Placement {
        /// The group.
        id: u32,
        region: String,
        #[schema(value_type = Option<String>)]
        leader: Option<Shown<NodeId>>,
        replicas: Vec<PlacedBody>,
    },
    /// `tenant_moving`
    Moving {
        /// The tenant.
        #[schema(value_type = String, format = "uuid")]
        id: Shown<TenantId>,
        /// Where it moves to.
        region: String,
    },
    /// `tenant_moved`
    Moved {
        /// The tenant.
        #[schema(value_type = String, format = "uuid")]
        id: Shown<TenantId>,
        /// Where it lives now.
        region: String,
        /// The group that it lives in now.
        group: u32,
    },
}

/// A replica of a group.
#[derive(Serialize, ToSchema)]
#[schema(as = PlacedReplica)]
pub(crate) struct PlacedBody {
    #[schema(value_type = String)]
    node_id: Shown<NodeId>,
    /// `voter` or `learner`.
    role: &'static str,
}

/// Follows what changes in the cluster, as this node sees it: server-sent events `node_joined`,
/// `node_left`, `node_status`, `leader_changed`, `placement_changed`, `tenant_moving` and `tenant_moved`. What was so
/// before is not told.
#[utoipa::path(get, path = "/api/cluster/events", operation_id = "follow_cluster", tag = "Cluster",
    responses((status = 200, description = "Changes, until the client has enough",
        content_type = "text/event-stream", body = EventBody)))]
pub(crate) async fn events(
    axum::extract::State(app): axum::extract::State<App>,
    ctx: Ctx,
) -> Reply {
    let watcher = ctx.handles()?.cluster.watch().await?;
    let (events, response) = event_stream();
    tokio::spawn(async move {
        hand_on(events, BEGINNING, Changes(watcher), app.stopped()).await;
    });
    Ok(response)
}

/// What a watcher sees, written.
struct Changes(Watcher);

impl Pieces<()> for Changes {
    async fn next(&mut self) -> Option<Piece<()>> {
        let Ok(changes) = timeout(COMMENT_EVERY, self.0.changes()).await else {
            return Some((Bytes::from_static(COMMENT), None));
        };
        match written(changes) {
            Ok(changes) => Some((changes, None)),
            Err(error) => {
                tracing::error!(%error, "a change of the cluster cannot be written as JSON");
                None
            }
        }
    }
}

/// Writes changes as server-sent events.
fn written(changes: Vec<ClusterEvent>) -> Result<Bytes, serde_json::Error> {
    let mut text = Vec::new();
    for change in changes {
        let (name, body) = shown(change);
        text.extend_from_slice(format!("event: {name}\ndata: ").as_bytes());
        serde_json::to_writer(&mut text, &body)?;
        text.extend_from_slice(b"\n\n");
    }
    Ok(text.into())
}

fn shown(change: ClusterEvent) -> (&'static str, EventBody) {
    match change {
        ClusterEvent::NodeJoined(node) => ("node_joined", EventBody::Joined(node.into())),
        ClusterEvent::NodeLeft(node) => ("node_left", EventBody::Left { id: Shown(node) }),
        ClusterEvent::NodeStatus { node, status } => {
            ("node_status", EventBody::Status { id: Shown(node), status: status.name() })
        }
        ClusterEvent::LeaderChanged { leader, term } => {
            ("leader_changed", EventBody::Leader { leader: leader.map(Shown), term })
        }
        ClusterEvent::PlacementChanged(placement) => ("placement_changed", placement.into()),
        ClusterEvent::TenantMoving { tenant, region } => {
            ("tenant_moving", EventBody::Moving { id: Shown(tenant), region: region.into() })
        }
        ClusterEvent::TenantMoved { tenant, region, group } => {
            let (id, region) = (Shown(tenant), region.into());
            ("tenant_moved", EventBody::Moved { id, region, group })
        }
    }
}

impl From<PlacementView> for EventBody {
    fn from(view: PlacementView) -> Self {
        let placed = |ids: Vec<NodeId>, role| {
            ids.into_iter().map(move |id| PlacedBody { node_id: Shown(id), role })
        };
        let replicas = placed(view.voters, "voter").chain(placed(view.learners, "learner"));
        Self::Placement {
            id: view.group,
            region: view.region.into(),
            leader: view.leader.map(Shown),
            replicas: replicas.collect(),
        }
    }
}
