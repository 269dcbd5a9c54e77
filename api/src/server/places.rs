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
//! # Invariants
//!
//! - A connection whose request is worked on keeps its place.
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
        Self { size, next: 0, connections: BTreeMap::new(), held: HashMap::new(), taken: 0 }
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
        }
        Some(Evicted { tell, was_parked: state == State::Parked })
    }

    /// Notes what a connection does now.
    pub(super) fn turn(&mut self, number: u64, to: State, now: Instant) {
        if let Some(connection) = self.connections.get_mut(&number) {
            (connection.state, connection.since) = (to, now);
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
        let evicted = match connection.whose {
            Some(before) => {
                self.give_back(before);
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
        Ok(evicted)
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
mod tests {
    use super::*;

    const GREEDY: Whose = Whose::Unknown;
    const LATER: Duration = Duration::from_secs(5);

    fn tenant(number: u8) -> Whose {
        let id = format!("550e8400-e29b-41d4-a716-4466554400{number:02}");
        Whose::Tenant(id.parse().unwrap())
    }

    /// A connection with a request that took a place, told by its number; or what there was instead.
    fn come(
        places: &mut Places<u64>,
        whose: Whose,
        now: Instant,
    ) -> Result<(u64, Option<u64>), NoPlace> {
        let number = places.enter(places.next, now);
        let claimed = places.claim(number, whose, now);
        if claimed.is_err() {
            places.remove(number);
        }
        places.turn(number, State::Working, now);
        claimed.map(|evicted| (number, evicted.map(|evicted| evicted.tell)))
    }

    /// Connections of the greedy one, as many as it gets, in this state.
    fn greedy(size: usize, state: State, now: Instant) -> (Places<u64>, Vec<u64>) {
        let mut places = Places::new(size);
        let mut held = Vec::new();
        while let Ok((number, _)) = come(&mut places, GREEDY, now) {
            places.turn(number, state, now);
            held.push(number);
        }
        (places, held)
    }

    #[test]
    fn however_many_connections_one_tenant_opens_others_find_places() {
        let now = Instant::now();
        let (mut places, held) = greedy(16, State::Working, now);
        assert_eq!(held.len(), 12);
        let of = |places: &mut Places<u64>, whose| {
            std::iter::from_fn(|| come(places, whose, now).ok()).count()
        };
        assert_eq!((of(&mut places, tenant(1)), of(&mut places, tenant(2))), (3, 1));
        assert_eq!(come(&mut places, tenant(3), now), Err(NoPlace), "all are worked for");
        for number in held {
            places.remove(number);
        }
        assert_eq!(places.taken, 4);
        assert_eq!(of(&mut places, tenant(2)), 9);
    }

    #[test]
    fn whoever_holds_most_makes_way_for_whoever_holds_less() {
        for state in [State::WaitsForClient, State::WaitsForBody, State::Parked] {
            let began = Instant::now();
            let (mut places, mut held) = greedy(8, state, began);
            let now = began + GREEDY_IDLE_MIN;
            let came: Vec<_> =
                std::iter::from_fn(|| come(&mut places, tenant(1), now).ok()).collect();
            let evicted: Vec<_> = came.iter().filter_map(|(_, evicted)| *evicted).collect();
            held.truncate(evicted.len());
            assert_eq!(evicted, held, "the longest first, of {state:?}");
            assert!(came.len() >= 4 && places.held(GREEDY) >= came.len() - 1, "{}", came.len());
            // Nor does the greedy one get back what it had.
            assert_eq!(come(&mut places, GREEDY, now), Err(NoPlace));
        }
    }

    #[test]
    fn a_neighbour_keeps_its_idle_connections() {
        let began = Instant::now();
        let mut places = Places::new(8);
        let (idle, _) = come(&mut places, tenant(1), began).unwrap();
        places.turn(idle, State::WaitsForClient, began);
        while come(&mut places, GREEDY, began).is_ok() {}
        let now = began + LATER;
        assert_eq!(come(&mut places, GREEDY, now), Err(NoPlace));
        // To a tenant that holds no more it makes way, for it has waited long.
        for other in 2.. {
            if places.taken == places.size {
                break;
            }
            come(&mut places, tenant(other), now).unwrap();
        }
        assert_eq!(come(&mut places, tenant(99), now).unwrap().1, Some(idle));
    }

    #[test]
    fn who_is_worked_for_keeps_its_place_and_who_waits_a_moment_too() {
        let began = Instant::now();
        let (mut places, held) = greedy(4, State::Working, began);
        come(&mut places, tenant(1), began).unwrap();
        let now = began + LATER;
        assert_eq!(come(&mut places, tenant(2), now), Err(NoPlace));
        places.turn(held[1], State::WaitsForClient, now);
        assert_eq!(come(&mut places, tenant(2), now), Err(NoPlace));
        let now = now + GREEDY_IDLE_MIN;
        assert_eq!(come(&mut places, tenant(2), now).unwrap().1, Some(held[1]));
    }

    #[test]
    fn a_body_that_came_after_the_answer_changes_nothing() {
        let began = Instant::now();
        let mut places = Places::new(1);
        let (number, _) = come(&mut places, tenant(1), began).unwrap();
        places.turn(number, State::WaitsForClient, began);
        places.turn_from(number, State::WaitsForBody, State::Working, began);
        assert_eq!(places.connections[&number].state, State::WaitsForClient);
        places.turn(number, State::Working, began);
        places.turn_from(number, State::Working, State::WaitsForBody, began);
        assert_eq!(places.connections[&number].state, State::WaitsForBody);
    }

    #[test]
    fn a_connection_counts_for_the_tenant_of_its_last_request() {
        let now = Instant::now();
        let mut places = Places::new(4);
        let (number, _) = come(&mut places, tenant(1), now).unwrap();
        assert_eq!(places.claim(number, tenant(2), now), Ok(None));
        assert_eq!((places.held(tenant(1)), places.held(tenant(2)), places.taken), (0, 1, 1));
        places.remove(number);
        assert!(places.held.is_empty() && places.taken == 0);
        assert_eq!(places.claim(number, tenant(1), now), Err(NoPlace), "it was evicted");
    }

    #[test]
    fn who_says_nothing_makes_way_for_the_next_newcomer() {
        let began = Instant::now();
        let mut places = Places::new(1);
        let first = places.enter(1, began);
        let _second = places.enter(2, began);
        assert!(places.make_way(began).is_none(), "nobody has waited for long");
        let now = began + ENTRANCE_MIN;
        places.turn(first, State::Working, now);
        assert_eq!(places.make_way(now).map(|evicted| evicted.tell), Some(2));
        places.claim(first, tenant(1), now).unwrap();
        places.turn(first, State::WaitsForClient, now);
        assert!(places.make_way(now + LATER).is_none(), "who has a place keeps it");
    }
}
