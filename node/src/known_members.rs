//! Who the members are, as the identity remembers them: the first whom a node asks that starts without
//! its control plane's files.

use std::sync::Arc;
use std::time::Duration;

use shiioo_actors::node::MembersFollower;
use shiioo_actors::ports::Peer;

use crate::identity::Identity;
use crate::seams::NodeSeams;

/// Pause before the identity is written again that could not be, as on a full disk.
const WRITE_AGAIN: Duration = Duration::from_secs(10);

/// Writes the members into the identity whenever they have changed. Never returns.
pub(crate) async fn remember(
    seams: NodeSeams,
    mut identity: Identity,
    mut members: MembersFollower,
) {
    loop {
        let known = members.next().await.into_iter().map(Into::into).collect();
        if identity.peers == known {
            continue;
        }
        identity.peers = known;
        while let Err(error) = store(&seams, &identity).await {
            tracing::warn!(%error, "the identity does not know all members yet");
            tokio::time::sleep(WRITE_AGAIN).await;
        }
    }
}

async fn store(
    seams: &NodeSeams,
    identity: &Identity,
) -> Result<(), crate::identity::IdentityError> {
    let (disk, kept) = (Arc::clone(&seams.disk), identity.clone());
    seams.executor.run(move || kept.store(&*disk)).await
}

/// Lists the members beside the node itself, as its identity remembers them.
pub(crate) fn others(identity: &Identity) -> Vec<Peer> {
    let others = identity.peers.iter().filter(|peer| peer.raft_id != identity.raft_id);
    others.cloned().map(Into::into).collect()
}
