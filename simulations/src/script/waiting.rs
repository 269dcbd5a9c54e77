//! What a script waits for: time, an end, a leader, a whole cluster.

use std::time::Duration;

use outside::ensure;

use super::driver::Driver;
use crate::checks::Checked;
use crate::env::trace;

/// How long a line may take, simulated time.
const LINE_MAX: Duration = Duration::from_secs(40);

impl Driver {
    pub(super) fn pass(&mut self, time: Duration) -> Checked {
        let until = trace::now() + time;
        self.until("the time is over", |_| Ok(trace::now() >= until))?;
        Ok(())
    }

    /// Lets time pass until something is so. Gives back how long that took.
    pub(super) fn until(
        &mut self,
        what: &str,
        mut is_so: impl FnMut(&mut Self) -> Checked<bool>,
    ) -> Checked<Duration> {
        let from = trace::now();
        while !is_so(self)? {
            let waited = trace::now() - from;
            ensure!(waited < LINE_MAX, "after {LINE_MAX:?} it is not yet so that {what}");
            self.world.step()?;
        }
        Ok(trace::now() - from)
    }

    pub(super) fn until_down(&mut self, at: usize) -> Checked {
        self.until("the process has ended", |driver| Ok(!driver.world.is_up(at))).map(drop)
    }

    /// Whether the two hear each other.
    fn are_connected(&self, one: usize, other: usize) -> bool {
        let blocked = self.blocked.contains(&(one, other)) || self.blocked.contains(&(other, one));
        !blocked && !self.paused.contains(&one) && !self.paused.contains(&other)
    }

    /// The leader that a majority follows and hears, with its term.
    fn elected(&self) -> Option<(usize, u64)> {
        let (leader, term) = self.world.leader()?;
        let follows = |at: usize| {
            at == leader || (self.world.follows(at, leader, term) && self.are_connected(at, leader))
        };
        let followers = (0..self.nodes).filter(|at| follows(*at)).count();
        // Nobody else who hears the leader is behind.
        let all = (0..self.nodes)
            .filter(|at| self.world.runs(*at) && self.are_connected(*at, leader))
            .filter(|at| !self.full.contains(at))
            .all(follows);
        let is_heard = !self.paused.contains(&leader);
        (followers * 2 > self.nodes && all && is_heard).then_some((leader, term))
    }

    /// Writes down whether somebody else leads than at the last time.
    fn tell_leader(&mut self, took: Duration) {
        let now = self.elected();
        let says = match (self.last_leader, now) {
            (Some(before), Some(now)) if before == now => "the same node leads in the same term",
            (Some((before, _)), Some((now, _))) if before == now => "the same node leads again",
            (Some(_), Some(_)) => "another node leads",
            (None, Some(_)) => "a node leads",
            (_, None) => "nobody leads any longer",
        };
        self.last_leader = now.or(self.last_leader);
        self.write(&format!("    {says}, {}", within(took)));
    }

    pub(super) fn elect(&mut self) -> Checked {
        let took = self.until("a leader is followed", |driver| Ok(driver.elected().is_some()))?;
        self.tell_leader(took);
        Ok(())
    }

    pub(super) fn until_whole(&mut self) -> Checked<Duration> {
        self.until("all nodes run, vote and have applied the same", |driver| {
            let all = driver.elected().is_some() && driver.world.is_whole();
            Ok(all && driver.blocked.is_empty() && driver.paused.is_empty())
        })
    }

    pub(super) fn settle(&mut self) -> Checked {
        let took = self.until_whole()?;
        self.tell_leader(took);
        Ok(())
    }
}

/// A time as a transcript has it: rounded up, so that it does not change with every change of the
/// program.
fn within(took: Duration) -> String {
    format!("within {} s", took.as_secs() + 1)
}
