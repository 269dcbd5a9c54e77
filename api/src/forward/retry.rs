//! Decides whether an attempt is followed by another, and paces them.

use axum::response::Response;
use tokio::time::{Duration, Instant, sleep_until};

use crate::output::problem::Retry;

/// Wait before the next attempt, at first and at least.
pub(super) const RETRY_MIN: Duration = Duration::from_millis(10);
/// Wait before the next attempt, at most.
const RETRY_MAX: Duration = Duration::from_millis(200);

/// The result of one attempt.
pub(super) enum Attempted {
    /// The answer.
    Answered(Response),
    /// An answer that another attempt may better.
    Retry(Retry, Response),
}

impl Attempted {
    /// Judges an answer by the mark that it carries.
    pub(super) fn judge(response: Response) -> Self {
        match response.extensions().get::<Retry>().copied() {
            Some(retry) => Self::Retry(retry, response),
            None => Self::Answered(response),
        }
    }
}

/// The pauses between the attempts at one request.
pub(super) struct Pacing {
    /// When the client is to have an answer.
    until: Instant,
    pause: Duration,
}

impl Pacing {
    /// Begins with the shortest pause.
    pub(super) const fn new(until: Instant) -> Self {
        Self { until, pause: RETRY_MIN }
    }

    /// Tells whether the shortest pause would use up the time.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() + RETRY_MIN >= self.until
    }

    /// Waits for `moved`, a change of leadership, or the back-off, whichever is first, but at least
    /// `RETRY_MIN`: the local view may be stale, and say again and again that the lead has moved.
    /// Tells whether there is time for another attempt.
    pub(super) async fn rest(&mut self, moved: impl Future<Output = ()>) -> bool {
        let now = Instant::now();
        sleep_until(self.until.min(now + RETRY_MIN)).await;
        tokio::select! {
            () = moved => {}
            () = sleep_until(self.until.min(now + self.pause)) => {}
        }
        self.pause = (self.pause * 2).min(RETRY_MAX);
        Instant::now() < self.until
    }
}
