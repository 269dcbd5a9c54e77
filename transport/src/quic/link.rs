//! The way to one member, as a state: whether to use a connection, to wait for one, to make one,
//! or to give up for now. Knows no socket and reads no clock.
//!
//! - One attempt at a time: whoever comes while one is under way waits for it.
//! - After a failed attempt nobody tries for a while, which doubles from [`BACKOFF_MS_MIN`] to
//!   [`BACKOFF_MS_MAX`] and is shortened by chance by up to a half, so that nodes that failed
//!   together do not try together.
//! - A connection that did not last counts as a failed attempt; one that did is replaced at once.
//! - A member that has left is never dialled again.

use std::time::Duration;

use tokio::time::Instant;

/// Shortest pause after a failed attempt, ms.
const BACKOFF_MS_MIN: u64 = 20;
/// Longest pause after a failed attempt, ms.
const BACKOFF_MS_MAX: u64 = 500;
/// A connection that lived this long was a good one, ms.
const STEADY_MS: u64 = 1_000;

/// What a link asks of a connection.
pub(super) trait Closable: Clone {
    /// Why it is closed; `None` while it lives.
    fn closed(&self) -> Option<String>;
}

/// The way to one member.
#[derive(Debug)]
pub(super) struct Link<C> {
    state: State<C>,
    /// Attempts that failed one after the other.
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

/// What a caller does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<C> {
    /// Use this connection.
    Use(C),
    /// Wait for the link to change: someone dials.
    Wait,
    /// Dial, and tell the link what came of it.
    Dial,
    /// Give up.
    Fail(String),
}

impl<C: Closable> Link<C> {
    /// A link that nobody has tried.
    pub const fn new() -> Self {
        Self { state: State::Idle, failures: 0 }
    }

    /// What a caller does now. `below` draws a number below another.
    pub fn step(&mut self, now: Instant, below: impl FnOnce(u64) -> u64) -> Step<C> {
        if let State::Up { connection, since } = &self.state {
            let Some(why) = connection.closed() else { return Step::Use(connection.clone()) };
            if now.duration_since(*since) < Duration::from_millis(STEADY_MS) {
                self.fail(format!("the connection did not last: {why}"), now, below);
            } else {
                (self.state, self.failures) = (State::Idle, 0);
            }
        }
        match &self.state {
            State::Dialling => Step::Wait,
            State::Down { until, why } if now < *until => Step::Fail(why.clone()),
            State::Left => Step::Fail("it is no member any more".to_owned()),
            State::Idle | State::Down { .. } | State::Up { .. } => {
                self.state = State::Dialling;
                Step::Dial
            }
        }
    }

    /// An attempt brought a connection. It is given back when there is no use for it.
    pub fn up(&mut self, connection: C, now: Instant) -> Option<C> {
        if matches!(self.state, State::Left) {
            return Some(connection);
        }
        self.state = State::Up { connection, since: now };
        None
    }

    /// An attempt failed.
    pub fn fail(&mut self, why: String, now: Instant, below: impl FnOnce(u64) -> u64) {
        if matches!(self.state, State::Left) {
            return;
        }
        let pause = (BACKOFF_MS_MIN << self.failures.min(8)).min(BACKOFF_MS_MAX);
        let pause = pause - below(pause / 2 + 1);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Down { until: now + Duration::from_millis(pause), why };
    }

    /// The member has been heard of: it is worth an attempt now.
    pub fn forgive(&mut self) {
        self.failures = 0;
        if matches!(self.state, State::Down { .. }) {
            self.state = State::Idle;
        }
    }

    /// The connection there was last, dead or alive.
    pub const fn connection(&self) -> Option<&C> {
        match &self.state {
            State::Up { connection, .. } => Some(connection),
            State::Idle | State::Dialling | State::Down { .. } | State::Left => None,
        }
    }

    /// The member has left: nobody dials it again. Gives back the connection that is to be closed.
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
        assert_eq!(link.step(now, NO_LUCK), Step::Dial);
        assert_eq!(link.step(now, NO_LUCK), Step::Wait);
        assert_eq!(link.up(Fake(None), now), None);
        assert_eq!(link.step(now, NO_LUCK), Step::Use(Fake(None)));
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_chance_shortens_them() {
        let (mut link, mut now) = (Link::<Fake>::new(), Instant::now());
        for pause in [20, 40, 80, 160, 320, 500, 500] {
            assert_eq!(link.step(now, NO_LUCK), Step::Dial);
            link.fail("no answer".to_owned(), now, NO_LUCK);
            let early = now + ms(pause - 1);
            assert_eq!(link.step(early, NO_LUCK), Step::Fail("no answer".to_owned()));
            now += ms(pause);
        }
        assert_eq!(link.step(now, NO_LUCK), Step::Dial);
        link.fail("no answer".to_owned(), now, |bound| bound - 1);
        assert_eq!(link.step(now + ms(250), NO_LUCK), Step::Dial);
    }

    #[test]
    fn whoever_was_heard_of_is_dialled_at_once() {
        let (mut link, now) = (Link::<Fake>::new(), Instant::now());
        assert_eq!(link.step(now, NO_LUCK), Step::Dial);
        link.forgive();
        assert_eq!(link.step(now, NO_LUCK), Step::Wait, "an attempt is under way");
        link.fail("no answer".to_owned(), now, NO_LUCK);
        link.forgive();
        assert_eq!(link.step(now, NO_LUCK), Step::Dial);
    }

    #[test]
    fn a_connection_that_lasted_is_replaced_at_once_and_another_is_not() {
        let (mut link, now) = (Link::new(), Instant::now());
        link.up(Fake(Some("gone")), now);
        assert_eq!(link.step(now + ms(STEADY_MS), NO_LUCK), Step::Dial);
        link.up(Fake(Some("gone")), now);
        assert!(matches!(link.step(now + ms(1), NO_LUCK), Step::Fail(why) if why.contains("gone")));
    }

    #[test]
    fn who_has_left_is_not_dialled() {
        let (mut link, now) = (Link::new(), Instant::now());
        link.up(Fake(None), now);
        assert_eq!(link.leave(), Some(Fake(None)));
        assert!(matches!(link.step(now, NO_LUCK), Step::Fail(_)));
        link.forgive();
        link.fail(String::new(), now, NO_LUCK);
        assert_eq!(link.up(Fake(None), now), Some(Fake(None)), "too late: to be closed");
        assert!(matches!(link.step(now, NO_LUCK), Step::Fail(_)));
    }
}
