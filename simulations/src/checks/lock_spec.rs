//! One lock, as if one after the other used it.
//!
//! Time is in the operations: a term lasts at least from when it was asked for until its TTL is
//! over, so that nobody who was answered before that can have been given the lock. Refusals say
//! nothing that must hold and are left out.

use std::time::Duration;

use stateright::semantics::SequentialSpec;

use super::linear::{OPS_MAX, Seen};

/// A lock, as the order of operations so far has made it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lock {
    token: u64,
    /// The holder, and until when it is so for certain.
    held: Option<(String, Duration)>,
}

/// What was asked for, and the span in which it took effect.
#[derive(Debug, Clone, PartialEq)]
pub struct LockOp {
    /// Who asked.
    pub holder: String,
    /// What.
    pub verb: LockVerb,
    /// When the call that was answered was sent.
    pub sent_at: Duration,
    /// When it was answered.
    pub answered_at: Duration,
    /// Whether an earlier call of the same request may have taken effect.
    pub retried: bool,
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockVerb {
    /// To be given the lock.
    Acquire {
        /// For how long.
        ttl: Duration,
    },
    /// To keep it under this token.
    Renew {
        /// The token.
        token: u64,
        /// For how long.
        ttl: Duration,
    },
    /// To give it back under this token.
    Release {
        /// The token.
        token: u64,
    },
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockAnswer {
    /// Granted or kept, under this token.
    Held(u64),
    /// The term was over.
    Lost,
    /// Whether it was given back by this call.
    Released(bool),
}

/// The beginning of a history, short enough to be searched. What was under way at its end is in it
/// without its answer.
pub fn beginning(history: &[Seen<LockOp, LockAnswer>]) -> Vec<Seen<LockOp, LockAnswer>> {
    let mut ordered = history.to_vec();
    ordered.sort_by_key(|seen| seen.from);
    ordered.truncate(OPS_MAX);
    let Some(end) = ordered.last().map(|seen| seen.from) else { return ordered };
    if history.len() > OPS_MAX {
        for seen in &mut ordered {
            seen.answer = seen.answer.filter(|(at, _)| *at <= end);
        }
    }
    ordered
}

impl Lock {
    /// Whether the term may have ended by itself before the answer.
    fn may_be_over(&self, op: &LockOp) -> bool {
        self.held.as_ref().is_none_or(|(_, until)| op.answered_at >= *until)
    }

    fn is_held(&self, holder: &str, token: u64) -> bool {
        self.token == token && self.held.as_ref().is_some_and(|(of, _)| of == holder)
    }

    fn keep(&mut self, holder: &str, until: Duration) {
        let before = self.held.as_ref().map(|(_, until)| *until).unwrap_or_default();
        self.held = Some((holder.to_owned(), until.max(before)));
    }
}

impl SequentialSpec for Lock {
    type Op = LockOp;
    type Ret = LockAnswer;

    /// For operations without an answer. Only what frees the lock allows anything to others.
    fn invoke(&mut self, op: &LockOp) -> LockAnswer {
        match op.verb {
            LockVerb::Release { token } if self.is_held(&op.holder, token) => {
                self.held = None;
                LockAnswer::Released(true)
            }
            _ => LockAnswer::Lost,
        }
    }

    fn is_valid_step(&mut self, op: &LockOp, answer: &LockAnswer) -> bool {
        let holder = op.holder.as_str();
        match (op.verb, *answer) {
            (LockVerb::Acquire { ttl }, LockAnswer::Held(token)) => {
                if !self.is_held(holder, token) {
                    if token <= self.token || !self.may_be_over(op) {
                        return false;
                    }
                    (self.token, self.held) = (token, None);
                }
                self.keep(holder, op.sent_at + ttl);
                true
            }
            (LockVerb::Renew { token, ttl }, LockAnswer::Held(kept)) => {
                let holds = token == kept && self.is_held(holder, token);
                if holds {
                    self.keep(holder, op.sent_at + ttl);
                }
                holds
            }
            (LockVerb::Renew { token, .. }, LockAnswer::Lost)
            | (LockVerb::Release { token }, LockAnswer::Released(false)) => {
                let was_its = self.is_held(holder, token);
                if was_its && !op.retried && !self.may_be_over(op) {
                    return false;
                }
                if was_its {
                    self.held = None;
                }
                true
            }
            (LockVerb::Release { token }, LockAnswer::Released(true)) => {
                let holds = self.is_held(holder, token);
                self.held = self.held.take().filter(|_| !holds);
                holds
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::linear::{Seen, check};

    type SeenLock = Seen<LockOp, LockAnswer>;

    fn seen(holder: &str, verb: LockVerb, from: u64, to: u64, answer: LockAnswer) -> SeenLock {
        let (from, to) = (Duration::from_millis(from), Duration::from_millis(to));
        let op =
            LockOp { holder: holder.into(), verb, sent_at: from, answered_at: to, retried: false };
        Seen { client: holder.into(), from, answer: Some((to, answer)), op }
    }

    fn acquired(holder: &str, token: u64, from: u64, to: u64) -> SeenLock {
        let ttl = Duration::from_millis(100);
        seen(holder, LockVerb::Acquire { ttl }, from, to, LockAnswer::Held(token))
    }

    #[test]
    fn terms_that_follow_one_another_are_fine() {
        let (token, ttl) = (1, Duration::from_millis(100));
        let history = [
            acquired("a", 1, 0, 10),
            seen("a", LockVerb::Renew { token, ttl }, 50, 60, LockAnswer::Held(1)),
            acquired("b", 2, 70, 151),
            seen("a", LockVerb::Renew { token, ttl }, 152, 160, LockAnswer::Lost),
            seen("b", LockVerb::Release { token: 2 }, 170, 180, LockAnswer::Released(true)),
            acquired("a", 4, 171, 185),
        ];
        assert_eq!(check("k", Lock::default(), &history), Ok(()));
    }

    #[test]
    fn a_broken_lock_is_noticed() {
        let (token, ttl) = (1, Duration::from_millis(100));
        let lost = |from| seen("a", LockVerb::Renew { token, ttl }, from, from, LockAnswer::Lost);
        let released =
            |yes| seen("a", LockVerb::Release { token }, 20, 30, LockAnswer::Released(yes));
        for (why, history) in [
            ("two hold it", vec![acquired("a", 1, 0, 10), acquired("b", 2, 20, 30)]),
            ("a token twice", vec![acquired("a", 1, 0, 10), acquired("b", 1, 120, 130)]),
            ("a token fell", vec![acquired("a", 2, 0, 10), acquired("b", 1, 120, 130)]),
            ("cut short", vec![acquired("a", 1, 0, 10), lost(50)]),
            ("gone before its time", vec![acquired("a", 1, 0, 10), released(false)]),
            (
                "kept by one who gave it back",
                vec![
                    acquired("a", 1, 0, 10),
                    released(true),
                    seen("a", LockVerb::Renew { token, ttl }, 40, 50, LockAnswer::Held(1)),
                ],
            ),
        ] {
            assert!(check("k", Lock::default(), &history).is_err(), "{why}");
        }
    }
}
