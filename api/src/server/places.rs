//! The places of a node's connections: who holds them, and who has to give one up. Pure.
//!
//! # Problem
//!
//! A connection whose client says nothing, sends a request or its body byte by byte, waits on purpose,
//! or does not read its answer costs the client nothing, and the node a descriptor. Some dozens of them
//! would shut everybody else out.
//!
//! # Rule
//!
//! A connection comes in without a place. Its first request takes one, for the tenant that the request
//! names, once its credential is checked; it keeps the place between its requests. There are some more
//! connections than places, so that newcomers can always be heard.
//!
//! - *Who is in the entrance*, without a place, makes way for the next newcomer, the oldest first.
//! - *A place that is free* is taken by a tenant that has less than [`SHARE_MULTIPLE`] times as many as
//!   are left then: as many connections as one tenant opens, others find some.
//! - *Otherwise one is taken from another connection*: from the tenant that holds the most, if that is
//!   at least two more than the newcomer's tenant holds, or from one that is idle for long and whose
//!   tenant holds no fewer. Clients that are waited for go first, the longest first; then requests that
//!   wait on purpose.
//!
//! A tenant *crowds* the node while more than [`CROWD_MULTIPLE`] times as many of its requests are worked on
//! as, on average, of the others that were at work within the last second. It is only counted here; what
//! comes of it is decided in [`connections`](crate::server::connections). Requests that wait on purpose are
//! not worked on.
//!
//! # Invariants
//!
//! - A connection whose request is worked on keeps its place.
//! - The tenant that is alone at work never crowds, and neither does one of equals.
//! - Nobody loses a place to a tenant that holds more.
//! - Tenants that nobody has created hold places together, as one ([`Whose`]).

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use tokio::time::{Duration, Instant};

use crate::server::pool::Whose;

/// How long a connection may wait for its client before one of a tenant that holds no more may take
/// its place. A healthy client sends the rest of a request much sooner, and expects that a connection
/// closes between two requests.
pub(super) const IDLE_MIN: Duration = Duration::from_secs(1);
/// The same before one of a tenant that holds fewer may take it.
pub(super) const GREEDY_IDLE_MIN: Duration = Duration::from_millis(100);
/// How long a connection has for its first request before a newcomer may take its room.
pub(super) const ENTRANCE_MIN: Duration = Duration::from_millis(50);
/// A tenant crowds the node when more than this many times as many requests of it are worked on as of the other
/// tenants at work, on average.
const CROWD_MULTIPLE: usize = 4;
/// How long a tenant counts as one that is at work after its last request.
const AT_WORK: Duration = Duration::from_secs(1);
/// Owners of requests that are kept without a look whether they are at work still.
const WORK_LEN_MIN: usize = 16;
/// How many times the places that are left one tenant may hold.
const SHARE_MULTIPLE: usize = 3;

/// What a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Its client is to send a request, or to read an answer.
    WaitsForClient,
    /// Its client has sent a request, and is to send the rest of the body. One that dribbles is waited
    /// for from the first byte that did not come.
    WaitsForBody,
    /// The node works on its request.
    Working,
    /// Its request waits on purpose.
    Parked,
}

/// All connections. `T` is how one is told that it is evicted.
#[derive(Debug)]
pub(super) struct Places<T> {
    size: usize,
    next: u64,
    connections: BTreeMap<u64, Connection<T>>,
    /// How many places each holds, and all together.
    held: HashMap<Whose, usize>,
    taken: usize,
    /// Who is at work, or was a moment ago.
    work: HashMap<Whose, Work>,
    /// How many `work` may hold before those go that are not at work any more.
    work_len_max: usize,
}

/// Requests of one owner that have a place and are worked on.
#[derive(Debug)]
struct Work {
    requests: usize,
    /// When the last of them began.
    last: Instant,
}

#[derive(Debug)]
struct Connection<T> {
    came: Instant,
    state: State,
    /// Since when it is in this state.
    since: Instant,
    /// Whose place it has; none in the entrance.
    whose: Option<Whose>,
    tell: T,
}

/// A connection that has lost its place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Evicted<T> {
    pub(super) tell: T,
    /// Whether its request waited on purpose, and is to be answered.
    pub(super) was_parked: bool,
}

/// Says that there is no place for a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoPlace;

impl<T> Places<T> {
    /// Makes places that are all free.
    pub(super) fn new(size: usize) -> Self {
        Self {
            size,
            next: 0,
            connections: BTreeMap::new(),
            held: HashMap::new(),
            taken: 0,
            work: HashMap::new(),
            work_len_max: WORK_LEN_MIN,
        }
    }

    /// Adds a connection to the entrance.
    pub(super) fn enter(&mut self, tell: T, now: Instant) -> u64 {
        let number = self.next;
        self.next += 1;
        let state = State::WaitsForClient;
        let connection = Connection { came: now, state, since: now, whose: None, tell };
        self.connections.insert(number, connection);
        number
    }

    /// Removes a connection: it has ended, or is evicted.
    pub(super) fn remove(&mut self, number: u64) -> Option<Evicted<T>> {
        let Connection { whose, state, tell, .. } = self.connections.remove(&number)?;
        if let Some(whose) = whose {
            self.give_back(whose);
            self.end_work(whose, state);
        }
        Some(Evicted { tell, was_parked: state == State::Parked })
    }

    /// Notes what a connection does now.
    pub(super) fn turn(&mut self, number: u64, to: State, now: Instant) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let before = std::mem::replace(&mut connection.state, to);
        connection.since = now;
        if let Some(whose) = connection.whose {
            self.end_work(whose, before);
            self.begin_work(whose, to, now);
        }
    }

    /// Notes what a connection does now, if it did `from` until now.
    pub(super) fn turn_from(&mut self, number: u64, from: State, to: State, now: Instant) {
        if self.connections.get(&number).is_some_and(|connection| connection.state == from) {
            self.turn(number, to, now);
        }
    }

    /// Takes a place for a request on a connection, from another connection if need be.
    pub(super) fn claim(
        &mut self,
        number: u64,
        whose: Whose,
        now: Instant,
    ) -> Result<Option<Evicted<T>>, NoPlace> {
        // A race: it was evicted when its request came.
        let connection = self.connections.get(&number).ok_or(NoPlace)?;
        let state = connection.state;
        let evicted = match connection.whose {
            Some(before) => {
                self.give_back(before);
                self.end_work(before, state);
                None
            }
            None if self.held(whose) < SHARE_MULTIPLE * (self.size - self.taken) => None,
            None => {
                let victim = self.victim(whose, now).ok_or(NoPlace)?;
                self.remove(victim)
            }
        };
        *self.held.entry(whose).or_default() += 1;
        self.taken += 1;
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.whose = Some(whose);
        }
        self.begin_work(whose, state, now);
        Ok(evicted)
    }

    /// Returns how many requests of the owner of a connection's request are worked on, if they crowd the node.
    pub(super) fn crowd(&self, number: u64, now: Instant) -> Option<usize> {
        let whose = self.connections.get(&number)?.whose?;
        let own = self.work.get(&whose)?.requests;
        // The others count for one each at least, so that no fewer crowd: most requests go by without a look
        // at everybody who is at work.
        if own <= CROWD_MULTIPLE {
            return None;
        }
        let others = self.work.iter().filter(|(other, work)| {
            **other != whose && (work.requests > 0 || now - work.last < AT_WORK)
        });
        let (count, sum) =
            others.fold((0, 0), |(count, sum), (_, work)| (count + 1, sum + work.requests));
        // Whoever is at work has one request at least, if not at this very moment.
        (count > 0 && own * count > CROWD_MULTIPLE * sum.max(count)).then_some(own)
    }

    /// Evicts the connection that has been in the entrance the longest.
    pub(super) fn make_way(&mut self, now: Instant) -> Option<Evicted<T>> {
        let may_go = |connection: &Connection<T>| {
            let is_worked_on = connection.state == State::Working;
            connection.whose.is_none() && !is_worked_on && now - connection.came >= ENTRANCE_MIN
        };
        // Numbers grow as connections come.
        let (number, _) = self.connections.iter().find(|(_, connection)| may_go(connection))?;
        self.remove(*number)
    }

    /// Finds the connection whose place a request of `whose` takes.
    fn victim(&self, whose: Whose, now: Instant) -> Option<u64> {
        let own = self.held(whose);
        let candidates = self.connections.iter().filter_map(|(number, connection)| {
            let held = self.held(connection.whose?);
            let waited = now - connection.since;
            let is_greedy = held >= own + 2;
            let may_go = match connection.state {
                State::Working => false,
                State::Parked => is_greedy,
                State::WaitsForClient | State::WaitsForBody => {
                    is_greedy && waited >= GREEDY_IDLE_MIN || held >= own && waited >= IDLE_MIN
                }
            };
            let is_parked = connection.state == State::Parked;
            may_go.then_some((Reverse(held), is_parked, connection.since, *number))
        });
        candidates.min().map(|(.., number)| number)
    }

    fn begin_work(&mut self, whose: Whose, state: State, now: Instant) {
        if state != State::Working {
            return;
        }
        if self.work.len() >= self.work_len_max {
            // Bounded by twice the owners that were at work within a second. Each look at all of them is paid
            // by as many that came since the last.
            self.work.retain(|_, work| work.requests > 0 || now - work.last < AT_WORK);
            self.work_len_max = 2 * self.work.len() + WORK_LEN_MIN;
        }
        let work = self.work.entry(whose).or_insert(Work { requests: 0, last: now });
        work.requests += 1;
        work.last = now;
    }

    fn end_work(&mut self, whose: Whose, state: State) {
        if state == State::Working
            && let Some(work) = self.work.get_mut(&whose)
        {
            work.requests -= 1;
        }
    }

    fn held(&self, whose: Whose) -> usize {
        self.held.get(&whose).copied().unwrap_or_default()
    }

    fn give_back(&mut self, whose: Whose) {
        self.taken -= 1;
        if let Some(held) = self.held.get_mut(&whose) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&whose);
            }
        }
    }
}

#[cfg(test)]
mod tests;
