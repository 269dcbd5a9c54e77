//! Opens the log, under the identity that the node goes on with.

use std::sync::Arc;

use shiioo_actors::domain::membership::Member;
use shiioo_actors::ports::StoreError;
use shiioo_actors::services::tenants::Registry;
use shiioo_storage::Groups;
use shiioo_transport::quic::Quic;
use shiioo_transport::udp::AsyncUdpSocket;

use super::{ServicesError, start};
use crate::config::Config;
use crate::identity::Identity;
use crate::known_members;
use crate::own_log::{self, OwnLogError};
use crate::replacement::{self, ReplacementError};
use crate::seams::NodeSeams;

/// Holds what has the node's name in it, and the log.
pub(super) struct Opened {
    pub(super) quic: Arc<Quic>,
    pub(super) groups: Arc<Groups>,
    pub(super) identity: Identity,
    pub(super) member: Member,
}

/// Starts QUIC, opens the log and starts the groups, none of which is open yet. A member that has lost its
/// log goes on as another one, where there are others.
pub(super) async fn open(
    config: &Config,
    seams: &NodeSeams,
    registry: &Arc<Registry>,
    socket: Arc<dyn AsyncUdpSocket>,
    (identity, member): (Identity, Member),
) -> Result<Opened, ServicesError> {
    let own_addr = &member.node_addr;
    let quic = start::quic(config, seams, &identity, own_addr, Arc::clone(&socket))?;
    let loss = match log(config, seams, &identity, registry, &quic).await {
        Ok(groups) => return Ok(Opened { quic, groups, identity, member }),
        Err(error) if is_loss(&error) && can_ask(&identity) => error,
        Err(error) => return Err(error),
    };
    tracing::error!(%loss, "this member cannot go on without its log: it asks to go on as another one");
    let failed = |why: ReplacementError| ServicesError::NotReplaced {
        loss: loss.to_string(),
        why: Box::new(why),
    };
    let next = replacement::admitted(config, seams, &identity, &member, &*quic).await;
    let next = next.map_err(failed)?;
    // One socket, and one name at a time.
    quic.close().await;
    drop(quic);
    let quic = start::quic(config, seams, &next, own_addr, socket)?;
    replacement::take_over(seams, identity, &next, &*quic).await.map_err(failed)?;
    let groups = log(config, seams, &next, registry, &quic).await?;
    let member = Member { node: next.node_id, raft_id: next.raft_id, ..member };
    Ok(Opened { quic, groups, identity: next, member })
}

async fn log(
    config: &Config,
    seams: &NodeSeams,
    identity: &Identity,
    registry: &Arc<Registry>,
    quic: &Arc<Quic>,
) -> Result<Arc<Groups>, ServicesError> {
    own_log::check(seams, identity).await?;
    Ok(start::groups(config, seams, identity, registry, quic).await?)
}

/// Tells whether the log is lost or damaged, so that nothing of it can be relied on.
fn is_loss(error: &ServicesError) -> bool {
    matches!(
        error,
        ServicesError::OwnLog(OwnLogError::Lost) | ServicesError::Store(StoreError::Damaged { .. })
    )
}

/// Tells whether there are others, and the cluster is founded.
fn can_ask(identity: &Identity) -> bool {
    identity.authority_key.is_none() && !known_members::others(identity).is_empty()
}
