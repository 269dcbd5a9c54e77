//! Fencing tokens grow with every grant, and no lock has two holders.
//!
//! A client holds a lock *for certain* from the answer that granted it until its TTL, counted from
//! when the last call that prolonged it was sent, or until it asks for the release. What happened
//! on the node lies outside of that span on both sides, so that two spans that overlap are two
//! holders.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Checked;
use crate::ensure;

/// A fact about locks, as a client learned it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockFact {
    /// The key space: the cluster's or a tenant's.
    pub space: String,
    /// The key.
    pub key: String,
    /// The holder.
    pub holder: String,
    /// The fencing token.
    pub token: u64,
    /// When the request was first sent, since the start of the run: what it brought about is no
    /// older.
    pub first_sent_at: Duration,
    /// When the call that was answered was sent.
    pub sent_at: Duration,
    /// What it says.
    pub what: LockEvent,
}

/// What a call about a lock did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockEvent {
    /// Granted, or prolonged, for so long from a moment after it was sent.
    Held {
        /// When the answer came.
        answered_at: Duration,
        /// For how long.
        ttl: Duration,
    },
    /// Asked to be released, whatever came of it.
    Releasing,
}

/// What one grant is known to have covered.
#[derive(Debug)]
struct Span<'a> {
    fact: &'a LockFact,
    /// The first answer that had it.
    from: Duration,
    /// The end of what is certain.
    until: Duration,
    released_at: Option<Duration>,
}

impl Span<'_> {
    fn end(&self) -> Duration {
        self.released_at.map_or(self.until, |at| at.min(self.until))
    }
}

/// Checks all that is known about locks.
///
/// # Errors
/// When a token went down or was given twice, or two held a lock at a time.
pub fn check(facts: &[LockFact]) -> Checked {
    let mut spans: BTreeMap<(&str, u64), Span<'_>> = BTreeMap::new();
    for fact in facts {
        let id = (fact.space.as_str(), fact.token);
        match fact.what {
            LockEvent::Held { answered_at, ttl } => {
                let until = fact.sent_at + ttl;
                let span = spans.entry(id).or_insert(Span {
                    fact,
                    from: answered_at,
                    until,
                    released_at: None,
                });
                ensure!(
                    span.fact.key == fact.key && span.fact.holder == fact.holder,
                    "one token for two grants: {:?} and {fact:?}",
                    span.fact
                );
                span.until = span.until.max(until);
            }
            LockEvent::Releasing => {
                if let Some(span) = spans.get_mut(&id) {
                    span.released_at.get_or_insert(fact.sent_at);
                }
            }
        }
    }
    for ((space, token), span) in &spans {
        for ((other_space, later), other) in &spans {
            if space != other_space || token >= later {
                continue;
            }
            // `later` is the larger token: its grant must not have been answered before the smaller
            // one was asked for at all.
            ensure!(
                other.from >= span.fact.first_sent_at,
                "token {token} was given after {later}: {span:?} and {other:?}"
            );
            let overlap = span.from.max(other.from) < span.end().min(other.end());
            ensure!(
                span.fact.key != other.fact.key || !overlap,
                "two held a lock at a time: {span:?} and {other:?}"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(holder: &str, token: u64, sent_ms: u64, ttl_ms: u64) -> LockFact {
        let answered_at = Duration::from_millis(sent_ms + 10);
        let what = LockEvent::Held { answered_at, ttl: Duration::from_millis(ttl_ms) };
        fact(holder, token, sent_ms, what)
    }

    fn fact(holder: &str, token: u64, sent_ms: u64, what: LockEvent) -> LockFact {
        LockFact {
            space: "cluster".into(),
            key: "k".into(),
            holder: holder.into(),
            token,
            first_sent_at: Duration::from_millis(sent_ms),
            sent_at: Duration::from_millis(sent_ms),
            what,
        }
    }

    #[test]
    fn terms_one_after_the_other_are_fine() {
        let facts = [
            held("a", 1, 0, 100),
            held("b", 2, 100, 1000),
            fact("b", 2, 200, LockEvent::Releasing),
            held("a", 3, 190, 100),
        ];
        assert_eq!(check(&facts), Ok(()));
    }

    #[test]
    fn two_holders_and_falling_tokens_are_noticed() {
        assert!(check(&[held("a", 1, 0, 100), held("b", 2, 50, 100)]).is_err());
        assert!(check(&[held("a", 2, 0, 10), held("b", 1, 50, 100)]).is_err());
        assert!(check(&[held("a", 1, 0, 10), held("b", 1, 50, 100)]).is_err());
    }
}
