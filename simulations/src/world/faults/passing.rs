//! Faults that pass: what each does to the world, and its end.

use std::fmt;
use std::time::Duration;

use rand::Rng as _;

use super::Fault;
use super::network::Split;
use crate::env::{Odds, trace};
use crate::plan::node_name;
use crate::world::World;
use crate::world::disks::files;

/// A fault that passes lasts so long, ms.
const LASTS_MS_MIN: u64 = 50;
const LASTS_MS_MAX: u64 = 3000;
/// Work with a sync in it takes so long on a slow disk, ms.
const SLOW_SYNC_MS_MIN: u64 = 5;
const SLOW_SYNC_MS_MAX: u64 = 400;
/// How often a write or a read fails at most where they do not all fail.
const IO_ERROR_ODDS_MAX: f64 = 0.3;
/// How much room a disk that is filling up still has, bytes.
const ROOM_BYTES_MAX: u64 = 96 << 10;
/// A day, ms.
const DAY_MS: i64 = 86_400_000;
/// What a node with a thin link sends, bytes a second: 0.5 to 8 Mbit/s.
const THIN_BYTES_MIN: u64 = 64 << 10;
const THIN_BYTES_MAX: u64 = 1 << 20;
/// How likely a packet is lost at most, and comes twice or late, while the air is bad.
const BAD_AIR_ODDS_MAX: f64 = 0.15;

/// A fault that passes. Nodes by their places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Passing {
    FullDisk(usize),
    FailedSyncs(usize),
    FailedWrites(usize),
    FailedReads(usize),
    SlowDisk(usize),
    Link(usize, String),
    HeldLink(usize, String),
    Split(Split),
    Pause(usize),
    SlowLink(usize, usize),
    ThinLink(usize),
    BadAir(usize),
    ClockDays(usize, i64),
}

impl World {
    /// Has a fault begin and pass again, unless another one is in its way.
    pub(super) fn begin(&mut self, fault: Passing) {
        if self.schedule.passing.iter().any(|(other, _)| other.excludes(&fault)) {
            return;
        }
        let lasts_ms = self.rng.random_range(LASTS_MS_MIN..=LASTS_MS_MAX);
        let until = self.sim.elapsed() + Duration::from_millis(lasts_ms);
        trace::event("all", "fault", format_args!("for {lasts_ms} ms: {fault}"), &[]);
        self.bring_about(&fault);
        self.schedule.passing.push((fault, until));
    }

    fn bring_about(&mut self, fault: &Passing) {
        match fault {
            Passing::FullDisk(at) => {
                let room = self.rng.random_range(0..=ROOM_BYTES_MAX);
                let disk = &self.seats[*at].host.disk;
                disk.set_capacity(Some(files::used(&*disk.fork().mount()) + room));
            }
            Passing::FailedSyncs(at) => self.seats[*at].host.disk.fail_syncs(true),
            Passing::FailedWrites(at) => {
                let odds = self.some_error_odds();
                self.seats[*at].host.disk.fail_writes(odds);
            }
            Passing::FailedReads(at) => {
                let odds = self.some_error_odds();
                self.seats[*at].host.disk.fail_reads(odds);
            }
            Passing::SlowDisk(at) => {
                let ms = self.rng.random_range(SLOW_SYNC_MS_MIN..=SLOW_SYNC_MS_MAX);
                self.seats[*at].host.pace.set(Duration::from_millis(ms));
                self.count(Fault::SlowDisk);
            }
            Passing::Link(at, client) => {
                self.sim.partition(self.seats[*at].host.name(), client.as_str());
                self.count(Fault::LostLink);
            }
            Passing::HeldLink(at, client) => {
                self.sim.hold(self.seats[*at].host.name(), client.as_str());
                self.count(Fault::HeldLink);
            }
            Passing::Split(split) => self.part(split),
            Passing::Pause(at) => {
                self.hold(*at);
                self.count(Fault::Pause);
            }
            Passing::SlowLink(a, b) => {
                self.slow_down((*a, *b));
                self.count(Fault::SlowLink);
            }
            Passing::ThinLink(at) => {
                let bytes = self.rng.random_range(THIN_BYTES_MIN..=THIN_BYTES_MAX);
                self.seats[*at].host.air.set_rate(Some(bytes));
                self.count(Fault::ThinLink);
            }
            Passing::ClockDays(at, days) => {
                self.seats[*at].host.clock.set_offset_ms(days * DAY_MS);
                self.board.days_off.borrow_mut().entry(*at).or_default().push(*days);
                self.count(Fault::ClockDays);
            }
            Passing::BadAir(at) => {
                let mut odds = || self.rng.random_range(0.0..BAD_AIR_ODDS_MAX);
                let odds = Odds { lost: odds(), doubled: odds(), late: odds() };
                self.seats[*at].host.air.set(odds);
            }
        }
    }

    /// Ends the faults whose time is over.
    pub(super) fn let_pass(&mut self, now: Duration) {
        let (over, on): (Vec<_>, Vec<_>) =
            self.schedule.passing.drain(..).partition(|(_, until)| *until <= now);
        self.schedule.passing = on;
        for (fault, _) in over {
            trace::event("all", "fault", format_args!("over: {fault}"), &[]);
            match &fault {
                Passing::FullDisk(at) => self.seats[*at].host.disk.set_capacity(None),
                Passing::FailedSyncs(at) => self.mend_syncs(*at),
                Passing::FailedWrites(at) => self.seats[*at].host.disk.fail_writes(0.0),
                Passing::FailedReads(at) => self.seats[*at].host.disk.fail_reads(0.0),
                Passing::SlowDisk(at) => self.seats[*at].host.pace.set(self.schedule.sync_takes),
                Passing::Link(at, client) => {
                    self.sim.repair(self.seats[*at].host.name(), client.as_str());
                }
                Passing::HeldLink(at, client) => {
                    self.sim.release(self.seats[*at].host.name(), client.as_str());
                }
                Passing::Split(split) => self.mend(split),
                Passing::Pause(at) => self.let_go(*at),
                Passing::SlowLink(a, b) => self.speed_up((*a, *b)),
                Passing::ThinLink(at) => self.seats[*at].host.air.set_rate(None),
                Passing::BadAir(at) => self.seats[*at].host.air.set(Odds::default()),
                Passing::ClockDays(at, _) => self.seats[*at].host.clock.set_offset_ms(0),
            }
        }
    }

    /// Syncs work again. What a failed one dropped may still be read until power goes: unless
    /// that is what the run is about, it goes now, as with a disk that was replaced.
    fn mend_syncs(&mut self, at: usize) {
        self.seats[at].host.disk.fail_syncs(false);
        if !self.schedule.stale_cache {
            self.cut_power(at);
        }
    }

    /// All operations of a kind fail, or some.
    fn some_error_odds(&mut self) -> f64 {
        if self.rng.random_bool(0.5) { 1.0 } else { self.rng.random_range(0.0..IO_ERROR_ODDS_MAX) }
    }
}

impl Passing {
    /// Whether the two cannot be in force together: they have a link or a knob in common.
    fn excludes(&self, other: &Self) -> bool {
        use Passing::{BadAir, ClockDays, HeldLink, Link, Pause, SlowLink, Split, ThinLink};
        match (self, other) {
            (Link(node, client) | HeldLink(node, client), Link(at, of) | HeldLink(at, of)) => {
                (node, client) == (at, of)
            }
            (Pause(_), Pause(_) | Link(..) | HeldLink(..) | Split(_))
            | (Link(..) | HeldLink(..) | Split(_), Pause(_))
            | (Split(_), Split(_))
            | (SlowLink(..), SlowLink(..))
            | (ThinLink(_), ThinLink(_))
            | (BadAir(_), BadAir(_)) => true,
            (ClockDays(node, _), ClockDays(at, _)) => node == at,
            _ => self == other,
        }
    }
}

impl fmt::Display for Passing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = |at: &usize| node_name(*at as u64 + 1);
        match self {
            Self::FullDisk(at) => write!(f, "no room on the disk of {}", n(at)),
            Self::FailedSyncs(at) => write!(f, "syncs of {} fail", n(at)),
            Self::FailedWrites(at) => write!(f, "writes of {} fail", n(at)),
            Self::FailedReads(at) => write!(f, "reads of {} fail", n(at)),
            Self::SlowDisk(at) => write!(f, "the disk of {} is slow", n(at)),
            Self::Link(at, client) => write!(f, "nothing passes between {} and {client}", n(at)),
            Self::HeldLink(at, client) => write!(f, "all between {} and {client} waits", n(at)),
            Self::Split(split) => write!(f, "{split}"),
            Self::Pause(at) => write!(f, "all to and from {} waits", n(at)),
            Self::SlowLink(a, b) => write!(f, "the way between {} and {} is long", n(a), n(b)),
            Self::ThinLink(at) => write!(f, "{} sends little", n(at)),
            Self::ClockDays(at, days) => write!(f, "the clock of {} is {days} days off", n(at)),
            Self::BadAir(at) => write!(f, "packets of {} get lost, doubled, late", n(at)),
        }
    }
}
