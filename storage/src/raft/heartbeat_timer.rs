//! The one timer of all groups on a node.
//!
//! openraft looks at its clock five times between two heartbeats, in each group: whether a heartbeat
//! is due, and whether the leader has been silent for too long. With a timer for all groups neither
//! needs looking at while all is well, so openraft's clock of a group stands still
//!
//! - on a leader, while its heartbeats leave, or where there is nobody to send them to;
//! - on a follower, while it hears its leader.
//!
//! Without such a *sign of life* for [`SILENT_PAUSES`] the clock runs, as it does in every group from
//! its start. The timer itself adds up to a pause: the clock runs again 0.6 T after the last sign at the
//! latest, and the first moment at which openraft may campaign is 0.8 T after it. So nothing is later
//! than it would be. On a leader whose queue of proposals is so long that the trigger waits in it,
//! openraft's own heartbeats, which do not, take over.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::group::Group;
use super::groups::Groups;

/// Pauses between heartbeats without a sign of life, after which openraft's clock runs.
const SILENT_PAUSES: u32 = 2;

/// Triggers the heartbeats of all groups, each `pause`, until the groups stop or are dropped.
pub(super) async fn beat(groups: Weak<Groups>, pause: Duration) {
    let mut timer = interval(pause);
    // A process that stood still sends one heartbeat, not all that it missed.
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let Some(groups) = groups.upgrade().filter(|groups| !groups.is_stopping()) else { return };
        let all: Vec<Arc<Group>> = groups.all().values().cloned().collect();
        for group in all {
            group.beat(Instant::now(), pause);
        }
    }
}

/// Tells whether a group needs openraft's clock.
fn needs_clock(is_leading_alone: bool, silence: Option<Duration>, pause: Duration) -> bool {
    !is_leading_alone && silence.is_none_or(|silence| silence >= pause * SILENT_PAUSES)
}

impl Group {
    /// Triggers the group's heartbeats if this node leads it, and stops or starts openraft's clock. Gives up what another
    /// replica does not go on sending.
    fn beat(&self, now: Instant, pause: Duration) {
        let leads = self.raft().server_metrics().borrow_watched().state == ServerState::Leader;
        let is_alone = self.is_only_replica();
        let silence =
            (*self.network().pulse.last_sign.lock()).map(|at| now.saturating_duration_since(at));
        self.raft().runtime_config().tick(needs_clock(leads && is_alone, silence, pause));
        if leads && !is_alone {
            // Not awaited: a group whose queue is full must not hold up the others.
            let _ = self.raft().trigger().heartbeat().now_or_never();
            self.network().pulse.triggered.notify_one();
        }
        // What holds it takes a piece of what is not idle.
        if let Ok(mut assembler) = self.assembler().try_lock() {
            assembler.drop_idle(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_stands_still_only_while_there_are_signs_of_life() {
        let pause = Duration::from_millis(50);
        for (is_leading_alone, silence_ms, expected) in [
            (false, None, true),
            (false, Some(0), false),
            (false, Some(99), false),
            (false, Some(100), true),
            (true, None, false),
            (true, Some(5_000), false),
        ] {
            let silence = silence_ms.map(Duration::from_millis);
            assert_eq!(needs_clock(is_leading_alone, silence, pause), expected, "{silence:?}");
        }
    }
}
