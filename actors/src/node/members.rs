//! Who the members are, for whoever remembers them beside the control plane's files.

use tokio::sync::watch;
use tokio::time::Instant;

use super::LOCAL_DEADLINE;
use crate::ports::Peer;
use crate::services::control::Control;
use crate::state::system::SystemState;

/// Follows who the members are, as this node knows them.
pub struct MembersFollower {
    control: Control,
    changed: watch::Receiver<()>,
}

impl MembersFollower {
    pub(super) fn new(control: Control, mut changed: watch::Receiver<()>) -> Self {
        // The first answer is who they are now.
        changed.mark_changed();
        Self { control, changed }
    }

    /// Returns the members, with this node, after the next change.
    pub async fn next(&mut self) -> Vec<Peer> {
        loop {
            if self.changed.changed().await.is_err() {
                // The control plane has stopped: nothing changes any more.
                return std::future::pending().await;
            }
            let deadline = Instant::now() + LOCAL_DEADLINE;
            if let Ok(peers) = self.control.read(deadline, SystemState::peers).await {
                return peers;
            }
        }
    }
}
