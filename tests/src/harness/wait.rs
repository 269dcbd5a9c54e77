//! Waiting for a condition instead of sleeping.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Long enough for anything a healthy node does on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_EVERY_MIN: Duration = Duration::from_millis(10);
const POLL_EVERY_MAX: Duration = Duration::from_millis(100);
const DAY_SECS: u64 = 86_400;

/// Polls until `probe` gives a value; panics, saying `what` was awaited, when it takes too long.
pub async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, probe).await
}

/// [`eventually`] with a deadline of one's own.
pub async fn eventually_within<T>(
    patience: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let started = Instant::now();
    let mut every = POLL_EVERY_MIN;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(started.elapsed() < patience, "not within {patience:?}: {what}");
        tokio::time::sleep(every).await;
        every = (every * 2).min(POLL_EVERY_MAX);
    }
}

/// Lets time pass where passing time *is* the condition (a TTL runs out, load is applied).
pub async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// Waits out midnight UTC when it comes within `span`, so that a count by the day starts and ends
/// in one day.
pub async fn away_from_midnight(span: Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs();
    let left = Duration::from_secs(DAY_SECS - now % DAY_SECS);
    if left < span {
        pause(left + Duration::from_secs(1)).await;
    }
}
