//! When a tenant's actor makes durable what has changed, when it goes to sleep, and the race with whoever wants it
//! awake.

use std::time::Duration;

use ractor::{ActorProcessingErr, ActorRef};

use super::actor::TenantShell;
use super::{ActivationState, TenantMessage};
use crate::ports::seams::Seams;

/// Time between two durable writes of a tenant that changes, at most.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(5);

/// An actor does not go to sleep so soon after its start: somebody is about to use it.
const AWAKE_MIN: Duration = Duration::from_secs(1);

/// Chooses after how long an actor makes durable what has changed for the first time. The replicas of a tenant are
/// opened by the same entry, and those of a node by its start: if they wrote at the same moments, the log of each node
/// would wait for a disk, and so would every quorum.
pub(super) fn first_housekeeping(seams: &Seams) -> Duration {
    let within = (HOUSEKEEPING_EVERY - AWAKE_MIN).as_secs() * 1000;
    AWAKE_MIN + Duration::from_millis(seams.below(within))
}

/// Has an actor make durable what has changed, again and again.
pub(super) async fn keep_house(actor: ActorRef<TenantMessage>, first: Duration) {
    tokio::time::sleep(first).await;
    while actor.send_message(TenantMessage::Housekeeping).is_ok() {
        tokio::time::sleep(HOUSEKEEPING_EVERY).await;
    }
}

impl TenantShell {
    /// Makes durable what has changed, and goes to sleep when nothing is left to do.
    pub(super) async fn flush_and_maybe_sleep(
        &mut self,
        myself: &ActorRef<TenantMessage>,
    ) -> Result<(), ActorProcessingErr> {
        self.runner.make_durable().await?;
        // Dirty after that: the disk is full. Asleep the tenant would hold the log, and nothing would
        // wake it when there is room.
        if !self.is_idle() || self.runner.is_dirty() {
            return Ok(());
        }
        // While the files are open, and before anybody is told that they close: a crash after this line
        // leaves a tenant that the next leader need not start, which is true.
        self.runner.mark_idle().await?;
        self.activation.state.send_replace(ActivationState::Closing);
        // The race, first half. A caller takes its permit and then looks at the state; the apply loop
        // puts an entry into the queue and then wakes. Who did so before the line above is seen here.
        // A caller that comes after it finds `Closing`, and waits for the next state.
        if self.activation.is_called() || self.activation.queue.has_work() {
            self.activation.state.send_replace(ActivationState::Running(myself.clone()));
            // An entry that came while the state was `Closing` has woken nobody.
            myself.send_message(TenantMessage::Drain)?;
            return Ok(());
        }
        self.unlead();
        // Before `Asleep`: the next actor opens the same files.
        self.runner.close_files();
        self.activation.state.send_replace(ActivationState::Asleep);
        // The race, second half. A caller that waits has seen the change and wakes the tenant itself. An
        // entry that came while the state was `Closing` has woken nobody: look once more. An entry
        // that comes after `Asleep` wakes by itself; both together start one actor, because only
        // one of them finds `Asleep`.
        if self.activation.queue.has_work() {
            self.activation.wake();
        }
        myself.stop(None);
        Ok(())
    }

    /// Tells whether nothing would be lost by sleeping:
    ///
    /// - no live run: its steps and waits need an actor;
    /// - no lock: its lease needs a timer, and its waiters a leader;
    /// - no task under way, such as one that proposes a result;
    /// - no request in the last minute: the per-minute quota is counted in memory;
    /// - no start a moment ago.
    fn is_idle(&mut self) -> bool {
        let now = self.now_secs();
        let machine = &self.runner.machine;
        machine.runs().is_empty()
            && machine.locks().list("", None).next().is_none()
            && self.steps.is_idle()
            && self.requests.used(now) == 0
            && self.started.elapsed() >= AWAKE_MIN
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicU8, Ordering};
    use std::sync::{Arc, Mutex};

    use tokio::time::Instant;

    use super::*;
    use crate::domain::time::Timestamp;
    use crate::ports::seams::Entropy;
    use crate::services::puppet::puppet;
    use crate::testing::fixed_seams;

    /// Another byte each time.
    #[derive(Debug)]
    struct Counting(AtomicU8);

    impl Entropy for Counting {
        fn fill(&self, buffer: &mut [u8]) {
            buffer.fill(self.0.fetch_add(1, Ordering::Relaxed));
        }
    }

    #[test]
    fn each_actor_begins_at_a_moment_of_its_own() {
        let seams = fixed_seams(Timestamp::default());
        let seams = Seams { entropy: Arc::new(Counting(AtomicU8::new(0))), ..seams };
        let firsts: BTreeSet<Duration> = (0..20).map(|_| first_housekeeping(&seams)).collect();
        assert!(firsts.len() > 10, "{firsts:?}");
        assert!(firsts.iter().all(|first| (AWAKE_MIN..HOUSEKEEPING_EVERY).contains(first)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_house_is_kept_from_a_moment_of_its_own_on() {
        let began = Instant::now();
        let kept = Arc::new(Mutex::new(Vec::new()));
        let actor = puppet(Arc::clone(&kept), |kept, _: TenantMessage| {
            kept.lock().unwrap().push(Instant::now());
        });
        let keeping = tokio::spawn(keep_house(actor.await, Duration::from_secs(2)));
        tokio::time::sleep(Duration::from_secs(13)).await;
        let kept = kept.lock().unwrap().clone();
        let after: Vec<u64> = kept.iter().map(|at| (*at - began).as_secs()).collect();
        assert_eq!(after, [2, 7, 12]);
        keeping.abort();
    }
}
