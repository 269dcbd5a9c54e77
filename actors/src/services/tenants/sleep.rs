//! When a tenant's actor goes to sleep, and the race with whoever wants it awake.

use ractor::{ActorProcessingErr, ActorRef};

use super::actor::TenantShell;
use super::{ActivationState, TenantMessage};

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
    /// - no request in the last minute: the per-minute quota is counted in memory.
    fn is_idle(&mut self) -> bool {
        let now = self.now_secs();
        let machine = &self.runner.machine;
        machine.runs().is_empty()
            && machine.locks().list("", None).next().is_none()
            && self.steps.is_idle()
            && self.requests.used(now) == 0
    }
}
