//! The state of the connection to one member. Knows no socket and reads no clock.
//!
//! ```text
//! Idle ──next_step──► Dialling ──connected──► Up ──closed after STEADY_MS──► Idle
//!   ▲                    │                     │
//!   │                    └─failed─► Down ◄─────┘ closed before STEADY_MS
//!   └──backoff over, or clear_backoff──┘             any ──leave──► Left
//! ```
//!
//! - There is one attempt at a time: callers that come during it wait for it.
//! - After a failed attempt there is a pause, which doubles from [`BACKOFF_MS_MIN`] to
//!   [`BACKOFF_MS_MAX`] and is shortened by chance by up to a half, so that nodes that failed
//!   together do not try together.
//! - A connection that ended early counts as a failed attempt: a member that accepts and closes at
//!   once would otherwise be dialled in a loop.
//! - A member that has left is never dialled again.

use std::time::Duration;

use tokio::time::Instant;

/// Shortest pause after a failed attempt, ms.
const BACKOFF_MS_MIN: u64 = 20;
/// Longest pause after a failed attempt, ms.
const BACKOFF_MS_MAX: u64 = 500;
/// Shortest life of a connection that does not count as a failed attempt, ms.
const STEADY_MS: u64 = 1_000;

/// Lets a link ask a connection whether it lives.
pub(super) trait Closable: Clone {
    /// Returns why the connection is closed; `None` while it lives.
    fn closed(&self) -> Option<String>;
}

/// Holds the state of the connection to one member.
#[derive(Debug)]
pub(super) struct Link<C> {
    state: State<C>,
    /// Number of attempts that failed one after the other.
    failures: u32,
}

#[derive(Debug)]
enum State<C> {
    Idle,
    Dialling,
    Up { connection: C, since: Instant },
    Down { until: Instant, why: String },
    Left,
}

/// Tells a caller what to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextStep<C> {
    /// Use this connection.
    Use(C),
    /// Wait for the link to change: another caller dials.
    Wait,
    /// Dial, and tell the link the outcome.
    Dial,
    /// Fail the call for this reason.
    Fail(String),
}

impl<C: Closable> Link<C> {
    /// Makes a link without a connection.
    pub const fn new() -> Self {
        Self { state: State::Idle, failures: 0 }
    }

    /// Decides what a caller does now. `below` draws a random number below its argument.
    pub fn next_step(&mut self, now: Instant, below: impl FnOnce(u64) -> u64) -> NextStep<C> {
        if let State::Up { connection, since } = &self.state {
            let Some(why) = connection.closed() else { return NextStep::Use(connection.clone()) };
            if now.duration_since(*since) < Duration::from_millis(STEADY_MS) {
                self.failed(format!("the connection did not last: {why}"), now, below);
            } else {
                (self.state, self.failures) = (State::Idle, 0);
            }
        }
        match &self.state {
            State::Dialling => NextStep::Wait,
            State::Down { until, why } if now < *until => NextStep::Fail(why.clone()),
            State::Left => NextStep::Fail("it is no member any more".to_owned()),
            State::Idle | State::Down { .. } | State::Up { .. } => {
                self.state = State::Dialling;
                NextStep::Dial
            }
        }
    }

    /// Takes the connection of a successful attempt; returns it when the member has left meanwhile.
    pub fn connected(&mut self, connection: C, now: Instant) -> Option<C> {
        if matches!(self.state, State::Left) {
            return Some(connection);
        }
        self.state = State::Up { connection, since: now };
        None
    }

    /// Records a failed attempt and begins the pause.
    pub fn failed(&mut self, why: String, now: Instant, below: impl FnOnce(u64) -> u64) {
        if matches!(self.state, State::Left) {
            return;
        }
        let pause = (BACKOFF_MS_MIN << self.failures.min(8)).min(BACKOFF_MS_MAX);
        let pause = pause - below(pause / 2 + 1);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Down { until: now + Duration::from_millis(pause), why };
    }

    /// Ends the pause: the member has connected to this node, so that an attempt is likely to succeed.
    pub fn clear_backoff(&mut self) {
        self.failures = 0;
        // An attempt in progress goes on: its outcome decides.
        if matches!(self.state, State::Down { .. }) {
            self.state = State::Idle;
        }
    }

    /// Returns the last connection, whether it lives or not.
    pub const fn connection(&self) -> Option<&C> {
        match &self.state {
            State::Up { connection, .. } => Some(connection),
            State::Idle | State::Dialling | State::Down { .. } | State::Left => None,
        }
    }

    /// Ends the link for good. Returns the connection that is to be closed.
    pub fn leave(&mut self) -> Option<C> {
        match std::mem::replace(&mut self.state, State::Left) {
            State::Up { connection, .. } => Some(connection),
            State::Idle | State::Dialling | State::Down { .. } | State::Left => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Fake(Option<&'static str>);

    impl Closable for Fake {
        fn closed(&self) -> Option<String> {
            self.0.map(str::to_owned)
        }
    }

    const NO_LUCK: fn(u64) -> u64 = |_| 0;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn one_dials_and_the_others_wait() {
        let (mut link, now) = (Link::new(), Instant::now());
        assert_eq!(link.next_step(now, NO_LUCK), NextStep::Dial);
        assert_eq!(link.next_step(now, NO_LUCK), NextStep::Wait);
        assert_eq!(link.connected(Fake(None), now), None);
        assert_eq!(link.next_step(now, NO_LUCK), NextStep::Use(Fake(None)));
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_chance_shortens_them() {
        let (mut link, mut now) = (Link::<Fake>::new(), Instant::now());
        for pause in [20, 40, 80, 160, 320, 500, 500] {
            assert_eq!(link.next_step(now, NO_LUCK), NextStep::Dial);
            link.failed("no answer".to_owned(), now, NO_LUCK);
            let early = now + ms(pause - 1);
            assert_eq!(link.next_step(early, NO_LUCK), NextStep::Fail("no answer".to_owned()));
            now += ms(pause);
        }
        assert_eq!(link.next_step(now, NO_LUCK), NextStep::Dial);
        link.failed("no answer".to_owned(), now, |bound| bound - 1);
        assert_eq!(link.next_step(now + ms(250), NO_LUCK), NextStep::Dial);
    }

    #[test]
    fn a_member_that_called_is_dialled_at_once() {
        let (mut link, now) = (Link::<Fake>::new(), Instant::now());
        assert_eq!(link.next_step(now, NO_LUCK), NextStep::Dial);
        link.clear_backoff();
        assert_eq!(link.next_step(now, NO_LUCK), NextStep::Wait, "an attempt is in progress");
        link.failed("no answer".to_owned(), now, NO_LUCK);
        link.clear_backoff();
        assert_eq!(link.next_step(now, NO_LUCK), NextStep::Dial);
    }

    #[test]
    fn a_connection_that_lasted_is_replaced_at_once_and_one_that_did_not_is_not() {
        let (mut link, now) = (Link::new(), Instant::now());
        link.connected(Fake(Some("gone")), now);
        assert_eq!(link.next_step(now + ms(STEADY_MS), NO_LUCK), NextStep::Dial);
        link.connected(Fake(Some("gone")), now);
        assert!(
            matches!(link.next_step(now + ms(1), NO_LUCK), NextStep::Fail(why) if why.contains("gone"))
        );
    }

    #[test]
    fn a_member_that_left_is_not_dialled() {
        let (mut link, now) = (Link::new(), Instant::now());
        link.connected(Fake(None), now);
        assert_eq!(link.leave(), Some(Fake(None)));
        assert!(matches!(link.next_step(now, NO_LUCK), NextStep::Fail(_)));
        link.clear_backoff();
        link.failed(String::new(), now, NO_LUCK);
        assert_eq!(link.connected(Fake(None), now), Some(Fake(None)), "too late: to be closed");
        assert!(matches!(link.next_step(now, NO_LUCK), NextStep::Fail(_)));
    }
}
