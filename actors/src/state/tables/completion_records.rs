//! Completion records: outcomes of requests that a node may send again, because it did not hear of
//! the first time. Pure; replicated by its owner.
//!
//! The problem: a command was proposed, and its outcome was lost, with a leader or a connection.
//! Proposing it again may do it twice; not doing so leaves the client without an answer. So each
//! request has a name, and the state machine keeps what came of it together with its effect: both
//! are in one entry of the log, and no failure can have one without the other. After C. Lee et al.,
//! "Implementing Linearizability at Large Scale and Low Latency" (RIFL, SOSP 2015).
//!
//! The protocol: a name ([`RpcId`]) is the incarnation of the node that asks, drawn by chance at
//! its start, and a sequence that it counts up (`cluster/rpc_ids.rs`). All attempts at a request
//! have one name. With each comes `first_incomplete`: every request below it has been answered, or
//! its client has gone, and none of them will be tried again.
//!
//! | a request comes with | then |
//! |---|---|
//! | a greater `first_incomplete` than known | the outcomes below it are forgotten; it is looked up as below |
//! | a sequence below the known `first_incomplete` | [`RequestState::Stale`]: a late copy, which does nothing |
//! | a sequence whose outcome is here | [`RequestState::Completed`]: the outcome again, without effects |
//! | any other | [`RequestState::New`]: it is done, and its outcome is kept if it changed something |
//!
//! So only requests under way cost anything, and no clock is asked: a node that stalls for an hour
//! may still ask for its outcome. Long polls have a sequence of their own, for one that waits for
//! minutes would keep the outcomes of all that came after it.
//!
//! Bounds: [`SESSIONS_MAX`] sessions, each one start of a node with one of its two sequences; the
//! one that was silent for longest, by the index of its last request, goes with its outcomes.
//! [`OUTCOMES_MAX`] outcomes; the oldest goes. What a bound has pushed out may be done again when
//! it is asked again.
//!
//! Invariants:
//! - a request whose outcome is here, or that its node has answered, changes nothing again;
//! - only outcomes of what changed something are kept: refused requests may be asked again, and
//!   come to what is true by then;
//! - `check` comes before any rule that could refuse now what was done then (`state/machine.rs`).
//!
//! Deliberately not done: a client's own retries come under other names, for they are other
//! requests to the node; [`idempotency`](super::idempotency) has the client's keys. Taking and
//! renewing a lock is not kept, because doing it again comes to the same
//! ([`Outcome::needs_completion_record`]).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::command::{Outcome, RpcId};
use crate::domain::codec;
use crate::mutants::{self, Mutant};
use crate::ports::{Row, StoreError};
use crate::state::{RowBuffer, row_key};

/// Most client sessions that are remembered; the one that was silent for longest goes when there are
/// more. A start of a node makes two of them: quick requests and long polls.
pub const SESSIONS_MAX: usize = 512;
/// Most outcomes kept; the oldest goes when there are more.
pub const OUTCOMES_MAX: usize = 100_000;

/// The kind of the rows of sessions: the first byte of their keys, in every state machine.
const SESSION_ROW: u8 = b'v';
/// The kind of the rows of outcomes.
const OUTCOME_ROW: u8 = b'a';

/// A client session, which is one start of a node: how far it has answered, and when it was last
/// heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct ClientSession {
    first_incomplete: u64,
    /// Index of its last request in the log.
    seen: u64,
}

/// What was done for one request, and at which index of the log.
type CompletionRecord = (u64, Outcome);

/// The outcomes of one state machine.
#[derive(Debug, Default, PartialEq)]
pub struct CompletionRecords {
    sessions: BTreeMap<u64, ClientSession>,
    outcomes: BTreeMap<(u64, u64), CompletionRecord>,
    by_age: BTreeSet<(u64, u64, u64)>,
    /// What the rows hold.
    written: BTreeSet<(u64, u64)>,
    /// What rows hold that was forgotten since they were written.
    unwritten: BTreeSet<(u64, u64)>,
    dirty_sessions: BTreeSet<u64>,
}

/// Whether a request is new.
#[derive(Debug, PartialEq)]
pub enum RequestState {
    /// It is.
    New,
    /// It was done, with this outcome.
    Completed(Outcome),
    /// Its node has answered it long since: this is a late copy.
    Stale,
}

impl CompletionRecords {
    /// As it was written down.
    ///
    /// # Errors
    /// When the rows cannot be read.
    pub fn load(rows: &RowBuffer) -> Result<Self, StoreError> {
        let sessions =
            rows.all::<(u64, ClientSession)>(SESSION_ROW)?.into_iter().map(|(_, session)| session);
        let outcomes = rows.all::<((u64, u64), CompletionRecord)>(OUTCOME_ROW)?;
        let outcomes: BTreeMap<_, _> = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
        Ok(Self {
            sessions: sessions.collect(),
            by_age: outcomes.iter().map(|(key, (at, _))| (*at, key.0, key.1)).collect(),
            written: outcomes.keys().copied().collect(),
            outcomes,
            dirty_sessions: BTreeSet::new(),
            unwritten: BTreeSet::new(),
        })
    }

    /// What is known of a request that comes at `index` of the log.
    pub fn check(&mut self, rpc_id: &RpcId, index: u64) -> RequestState {
        if mutants::is(Mutant::NoRequestNames) {
            return RequestState::New;
        }
        if !self.sessions.contains_key(&rpc_id.incarnation) && self.sessions.len() >= SESSIONS_MAX {
            self.forget_a_session();
        }
        let session = self
            .sessions
            .entry(rpc_id.incarnation)
            .or_insert(ClientSession { first_incomplete: 0, seen: index });
        session.seen = index;
        self.dirty_sessions.insert(rpc_id.incarnation);
        if rpc_id.first_incomplete > session.first_incomplete {
            let answered = session.first_incomplete..rpc_id.first_incomplete;
            session.first_incomplete = rpc_id.first_incomplete;
            let (from, to) =
                ((rpc_id.incarnation, answered.start), (rpc_id.incarnation, answered.end));
            let gone: Vec<_> = self.outcomes.range(from..to).map(|(key, _)| *key).collect();
            for key in gone {
                self.forget(key);
            }
        } else if rpc_id.sequence < session.first_incomplete {
            return RequestState::Stale;
        }
        match self.outcomes.get(&(rpc_id.incarnation, rpc_id.sequence)) {
            Some((_, outcome)) => RequestState::Completed(outcome.clone()),
            None => RequestState::New,
        }
    }

    /// Keeps the outcome of a request, if it changed something.
    pub fn remember(&mut self, rpc_id: &RpcId, index: u64, outcome: &Outcome) {
        if !outcome.needs_completion_record() || mutants::is(Mutant::NoRequestNames) {
            return;
        }
        let key = (rpc_id.incarnation, rpc_id.sequence);
        self.outcomes.insert(key, (index, outcome.clone()));
        self.by_age.insert((index, key.0, key.1));
        if self.outcomes.len() > OUTCOMES_MAX
            && let Some((_, incarnation, sequence)) = self.by_age.first().copied()
        {
            self.forget((incarnation, sequence));
        }
    }

    /// The rows that changed since the last call. An outcome that came and went meanwhile is in
    /// none: most of them never cost a row.
    pub fn take_rows(&mut self) -> Vec<Row> {
        let mut rows = Vec::new();
        for session in std::mem::take(&mut self.dirty_sessions) {
            let value = self.sessions.get(&session).map(|known| codec::encode(&(session, known)));
            rows.push((row_key(SESSION_ROW, &session.to_be_bytes()), value));
        }
        // Before the outcomes: one that was forgotten may have been remembered anew.
        for key in std::mem::take(&mut self.unwritten) {
            rows.push((outcome_key(key), None));
        }
        for (key, answer) in self.outcomes.iter().filter(|(key, _)| !self.written.contains(key)) {
            let value = codec::encode(&(key, answer));
            rows.push((outcome_key(*key), Some(value)));
        }
        self.written = self.outcomes.keys().copied().collect();
        rows
    }

    /// Goes on in another log, whose entries up to `index` are older than whatever comes now. An index of the
    /// log before says nothing there, and a greater one would seem to be of what has yet to come.
    pub fn continue_at(&mut self, index: u64) {
        let before = index.saturating_sub(1);
        for (id, session) in self.sessions.iter_mut().filter(|(_, it)| it.seen > before) {
            session.seen = before;
            self.dirty_sessions.insert(*id);
        }
        for (key, (at, _)) in self.outcomes.iter_mut().filter(|(_, (at, _))| *at > before) {
            *at = before;
            // Its row is written again; should it be forgotten before that, the row goes.
            if self.written.remove(key) {
                self.unwritten.insert(*key);
            }
        }
        self.by_age = self.outcomes.iter().map(|(key, (at, _))| (*at, key.0, key.1)).collect();
    }

    fn forget(&mut self, key: (u64, u64)) {
        if let Some((at, _)) = self.outcomes.remove(&key) {
            self.by_age.remove(&(at, key.0, key.1));
            // Its row must not stay for what is remembered under this key anew: replicas that write at
            // different moments would hold different rows.
            if self.written.remove(&key) {
                self.unwritten.insert(key);
            }
        }
    }

    /// Makes room for a session that is new.
    fn forget_a_session(&mut self) {
        let silent =
            self.sessions.iter().min_by_key(|(_, session)| session.seen).map(|(id, _)| *id);
        let Some(silent) = silent else { return };
        self.sessions.remove(&silent);
        self.dirty_sessions.insert(silent);
        let gone = self.outcomes.range((silent, 0)..=(silent, u64::MAX)).map(|(key, _)| *key);
        for key in gone.collect::<Vec<_>>() {
            self.forget(key);
        }
    }
}

fn outcome_key((incarnation, sequence): (u64, u64)) -> Vec<u8> {
    row_key(OUTCOME_ROW, &[incarnation.to_be_bytes(), sequence.to_be_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rpc_id(sequence: u64, first_incomplete: u64) -> RpcId {
        RpcId { incarnation: 7, sequence, first_incomplete }
    }

    #[test]
    fn a_request_that_was_done_is_not_done_again() {
        let mut table = CompletionRecords::default();
        assert_eq!(table.check(&rpc_id(0, 0), 1), RequestState::New);
        table.remember(&rpc_id(0, 0), 1, &Outcome::Done);
        assert_eq!(table.check(&rpc_id(0, 0), 2), RequestState::Completed(Outcome::Done));
        // Another node's request of the same number is another request.
        let other = RpcId { incarnation: 8, ..rpc_id(0, 0) };
        assert_eq!(table.check(&other, 2), RequestState::New);
    }

    #[test]
    fn what_was_refused_may_be_asked_again() {
        let mut table = CompletionRecords::default();
        table.remember(&rpc_id(0, 0), 1, &Outcome::Released(false));
        table.remember(&rpc_id(0, 0), 1, &Outcome::Ignored);
        assert_eq!(table.check(&rpc_id(0, 0), 2), RequestState::New);
    }

    #[test]
    fn an_answered_request_is_forgotten_and_its_late_copy_refused() {
        let mut table = CompletionRecords::default();
        table.remember(&rpc_id(0, 0), 1, &Outcome::Done);
        let written = table.take_rows().iter().filter(|(key, _)| key[0] == OUTCOME_ROW).count();
        assert_eq!(written, 1);
        assert_eq!(table.check(&rpc_id(1, 1), 2), RequestState::New);
        assert!(table.take_rows().contains(&(outcome_key((7, 0)), None)));
        assert_eq!(table.check(&rpc_id(0, 0), 3), RequestState::Stale);
    }

    #[test]
    fn what_is_forgotten_and_remembered_anew_is_written_anew() {
        let mut table = CompletionRecords::default();
        let mut rows = RowBuffer::default();
        table.remember(&rpc_id(0, 0), 1, &Outcome::Done);
        rows.put(table.take_rows());
        table.forget((7, 0));
        table.remember(&rpc_id(0, 0), 9, &Outcome::Ignored);
        rows.put(table.take_rows());
        assert_eq!(CompletionRecords::load(&rows).unwrap(), table);
        table.forget((7, 0));
        rows.put(table.take_rows());
        assert_eq!(CompletionRecords::load(&rows).unwrap().outcomes.len(), 0);
    }

    #[test]
    fn of_many_sessions_the_most_silent_is_forgotten_with_its_rows() {
        let of = |incarnation, sequence| RpcId { incarnation, sequence, first_incomplete: 0 };
        let sessions = SESSIONS_MAX as u64;
        let mut table = CompletionRecords::default();
        for session in 0..sessions {
            assert_eq!(table.check(&of(session, 0), session), RequestState::New);
            table.remember(&of(session, 0), session, &Outcome::Done);
        }
        // The first one is heard again: the second is the most silent now.
        assert_eq!(table.check(&of(0, 1), sessions), RequestState::New);
        let mut rows = RowBuffer::default();
        rows.put(table.take_rows());
        assert_eq!(table.check(&of(sessions, 0), sessions + 1), RequestState::New);
        rows.put(table.take_rows());
        let mut again = CompletionRecords::load(&rows).unwrap();
        assert_eq!(again, table);
        for table in [&mut table, &mut again] {
            assert_eq!(table.sessions.len(), SESSIONS_MAX);
            assert_eq!(
                table.check(&of(0, 0), 9999),
                RequestState::Completed(Outcome::Done),
                "heard again"
            );
            assert_eq!(table.check(&of(2, 0), 9999), RequestState::Completed(Outcome::Done));
            assert!(!table.sessions.contains_key(&1) && !table.outcomes.contains_key(&(1, 0)));
        }
    }

    #[test]
    fn of_many_outcomes_the_oldest_goes() {
        let mut table = CompletionRecords::default();
        for sequence in 0..=OUTCOMES_MAX as u64 {
            table.remember(&rpc_id(sequence, 0), 1 + sequence, &Outcome::Done);
        }
        assert_eq!(table.outcomes.len(), OUTCOMES_MAX);
        assert_eq!(table.by_age.len(), OUTCOMES_MAX);
        assert_eq!(table.check(&rpc_id(0, 0), 1), RequestState::New);
        assert_eq!(table.check(&rpc_id(1, 0), 1), RequestState::Completed(Outcome::Done));
    }

    #[test]
    fn a_reload_knows_the_same() {
        let mut table = CompletionRecords::default();
        table.check(&rpc_id(3, 2), 5);
        table.remember(&rpc_id(3, 2), 5, &Outcome::Released(true));
        let mut rows = RowBuffer::default();
        rows.put(table.take_rows());
        let mut again = CompletionRecords::load(&rows).unwrap();
        for (sequence, known) in [
            (1, RequestState::Stale),
            (2, RequestState::New),
            (3, RequestState::Completed(Outcome::Released(true))),
        ] {
            assert_eq!(again.check(&rpc_id(sequence, 2), 6), known);
        }
        assert!(again.take_rows().iter().all(|(key, _)| key[0] == SESSION_ROW));
    }
}
