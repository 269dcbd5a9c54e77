//! Which faults happen, when, and how they pass.

use std::fmt;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::SmallRng;

use super::network::Split;
use super::{CLIENTS, Fault, World, files, node_name};
use crate::seams::Odds;
use crate::workload::client_name;
use crate::{Mix, Plan, trace};

/// Time between two faults, ms.
const GAP_MS_MIN: u64 = 100;
const GAP_MS_MAX: u64 = 4000;
const HECTIC_GAP_MS_MAX: u64 = 900;
/// The end of a process that is armed comes within so many operations of its disk.
const ARMED_OPS_MAX: u64 = 120;
/// A fault that passes lasts so long, ms.
const LASTS_MS_MIN: u64 = 50;
const LASTS_MS_MAX: u64 = 3000;
/// Work with a sync in it takes so long on a slow disk, ms, and at most so long on any, which half of
/// the runs have.
const SLOW_SYNC_MS_MIN: u64 = 5;
const SLOW_SYNC_MS_MAX: u64 = 400;
const SYNC_US_MAX: u64 = 3000;
/// How often a write or a read fails at most where they do not all fail.
const IO_ERROR_ODDS_MAX: f64 = 0.3;
/// How much room a disk that is filling up still has, bytes.
const ROOM_BYTES_MAX: u64 = 96 << 10;
/// A clock is off by at most so much, ms. What waits for a moment of wall time waits longer when the
/// clock is set back, by twice this at most.
const CLOCK_OFF_MS_MAX: i64 = 10_000;
/// A day, ms.
const DAY_MS: i64 = 86_400_000;
/// A clock gains or loses at most so much, millionths.
const CLOCK_DRIFT_PPM_MAX: i64 = 2000;
/// A clock that is wrong by days is wrong by so many at most.
const CLOCK_DAYS_MAX: i64 = 40;
/// What a node with a thin link sends, bytes a second: 0.5 to 8 Mbit/s.
const THIN_BYTES_MIN: u64 = 64 << 10;
const THIN_BYTES_MAX: u64 = 1 << 20;
/// How likely a packet is lost at most, and comes twice or late, while the air is bad.
const BAD_AIR_ODDS_MAX: f64 = 0.15;
/// How much more likely than the others a seed's favourite faults are.
const FAVOURED: u32 = 4;

/// What is going on, and what comes next.
pub(super) struct Weather {
    enabled: bool,
    next_at: Duration,
    gap_ms_max: u64,
    /// How likely each fault is in this run.
    odds: Vec<(Fault, u32)>,
    /// The faults that have to pass, and when.
    passing: Vec<(Passing, Duration)>,
    /// The node that a rolling restart takes next.
    rolls: Option<usize>,
    /// What work with a sync in it takes.
    sync_takes: Duration,
    /// Whether a process can read what a failed sync has dropped.
    stale_cache: bool,
}

/// A fault that passes. Nodes by their places.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Passing {
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

/// How likely each fault is among the others of a mix, before a seed has its favourites.
const ODDS: [(Mix, Fault, u32); 35] = [
    (Mix::Processes, Fault::PowerCut, 12),
    (Mix::Processes, Fault::PowerCutInOperation, 15),
    (Mix::Processes, Fault::Blackout, 2),
    (Mix::Processes, Fault::KillInOperation, 9),
    (Mix::Processes, Fault::Kill, 9),
    (Mix::Processes, Fault::Restart, 8),
    (Mix::Processes, Fault::RollingRestart, 3),
    (Mix::Processes, Fault::Leave, 2),
    (Mix::Disks, Fault::FullDisk, 8),
    (Mix::Disks, Fault::FailedSyncs, 6),
    (Mix::Disks, Fault::FailedWrites, 4),
    (Mix::Disks, Fault::FailedReads, 4),
    (Mix::Disks, Fault::SlowDisk, 8),
    (Mix::Disks, Fault::BitRot, 1),
    (Mix::Disks, Fault::LostDisk, 1),
    (Mix::Disks, Fault::LostLog, 1),
    (Mix::Disks, Fault::LostSystem, 1),
    (Mix::Disks, Fault::OlderCopy, 2),
    (Mix::Disks, Fault::OlderLog, 2),
    (Mix::Disks, Fault::LostFolder, 3),
    (Mix::Disks, Fault::OlderFolder, 4),
    (Mix::Disks, Fault::RottenFolder, 3),
    (Mix::Network, Fault::LostLink, 6),
    (Mix::Network, Fault::HeldLink, 6),
    (Mix::Network, Fault::LeaderAlone, 9),
    (Mix::Network, Fault::NodeAlone, 5),
    (Mix::Network, Fault::Halves, 5),
    (Mix::Network, Fault::OneWay, 6),
    (Mix::Network, Fault::Bridge, 5),
    (Mix::Network, Fault::Pause, 7),
    (Mix::Network, Fault::SlowLink, 6),
    (Mix::Network, Fault::ThinLink, 5),
    (Mix::Network, Fault::LostPacket, 8),
    (Mix::Clocks, Fault::ClockJump, 8),
    (Mix::Clocks, Fault::ClockDays, 5),
];

/// Faults that need two nodes.
const AMONG_NODES: [Fault; 19] = [
    Fault::RottenFolder,
    Fault::LostLog,
    Fault::LostSystem,
    Fault::OlderCopy,
    Fault::OlderLog,
    Fault::ThinLink,
    Fault::Leave,
    Fault::BitRot,
    Fault::LostDisk,
    Fault::Blackout,
    Fault::RollingRestart,
    Fault::LeaderAlone,
    Fault::NodeAlone,
    Fault::Halves,
    Fault::OneWay,
    Fault::Bridge,
    Fault::Pause,
    Fault::SlowLink,
    Fault::LostPacket,
];

impl Weather {
    pub(super) fn new(plan: &Plan, rng: &mut SmallRng) -> Self {
        let odds = ODDS
            .into_iter()
            .filter(|(mix, fault, _)| {
                let wanted = plan.mix == Mix::All || plan.mix == *mix;
                wanted && (plan.nodes > 1 || !AMONG_NODES.contains(fault))
            })
            .map(|(_, fault, odds)| {
                // A run with little of everything finds less than one with much of something.
                (fault, if rng.random_bool(0.2) { odds * FAVOURED } else { odds })
            })
            .collect();
        Self {
            enabled: plan.faults,
            next_at: Duration::from_millis(rng.random_range(0..=GAP_MS_MAX)),
            gap_ms_max: if plan.hectic { HECTIC_GAP_MS_MAX } else { GAP_MS_MAX },
            odds,
            passing: Vec::new(),
            rolls: None,
            sync_takes: Duration::from_micros(if rng.random_bool(0.5) {
                0
            } else {
                rng.random_range(1..=SYNC_US_MAX)
            }),
            stale_cache: plan.stale_cache,
        }
    }

    /// Whether nothing goes on that has to pass.
    pub(super) fn is_quiet(&self) -> bool {
        self.passing.is_empty() && self.rolls.is_none()
    }

    fn some_fault(&self, rng: &mut SmallRng) -> Option<Fault> {
        let all: u32 = self.odds.iter().map(|(_, odds)| odds).sum();
        let mut drawn = rng.random_range(0..all.max(1));
        self.odds.iter().find_map(|(fault, odds)| {
            let chosen = drawn < *odds;
            drawn = drawn.saturating_sub(*odds);
            chosen.then_some(*fault)
        })
    }
}

impl World {
    /// Lets faults pass whose time has come, and the next one happen.
    pub(super) fn next_fault(&mut self) {
        let now = self.sim.elapsed();
        self.let_pass(now);
        self.roll_on();
        self.make_good();
        let holds_still = self.holds_still(now);
        self.board.holds_still.set(holds_still);
        self.put_copy_back(now);
        if holds_still {
            return;
        }
        self.follow_folder(now);
        if !self.weather.enabled || now < self.weather.next_at {
            return;
        }
        let gap_ms = self.rng.random_range(GAP_MS_MIN..=self.weather.gap_ms_max);
        self.weather.next_at = now + Duration::from_millis(gap_ms);
        let Some(fault) = self.weather.some_fault(&mut self.rng) else { return };
        let at = self.rng.random_range(0..self.seats.len());
        match fault {
            Fault::PowerCut => self.cut_power(at),
            Fault::PowerCutInOperation | Fault::KillInOperation => self.arm(at, fault),
            Fault::Blackout => self.black_out(),
            Fault::Kill => self.kill(at),
            Fault::Restart => self.restart(at),
            Fault::RollingRestart => self.weather.rolls = self.weather.rolls.or(Some(0)),
            Fault::Leave => self.ask_to_leave(at),
            Fault::FullDisk => self.begin(Passing::FullDisk(at)),
            Fault::FailedSyncs => self.begin(Passing::FailedSyncs(at)),
            Fault::FailedWrites => self.begin(Passing::FailedWrites(at)),
            Fault::FailedReads => self.begin(Passing::FailedReads(at)),
            Fault::SlowDisk => self.begin(Passing::SlowDisk(at)),
            Fault::BitRot => self.rot(at),
            Fault::LostDisk => self.take_disk(at),
            Fault::LostLog => self.take_log(at),
            Fault::LostSystem => self.take_system(at),
            Fault::OlderCopy | Fault::OlderLog => self.copy_disk(at, fault),
            Fault::LostFolder => self.lose_folder(),
            Fault::OlderFolder => self.copy_folder(),
            Fault::RottenFolder => self.rot_folder(),
            Fault::LostLink => {
                let client = self.some_client();
                self.begin(Passing::Link(at, client));
            }
            Fault::HeldLink => {
                let client = self.some_client();
                self.begin(Passing::HeldLink(at, client));
            }
            Fault::Pause => self.begin(Passing::Pause(at)),
            Fault::SlowLink => {
                let (a, b) = self.some_pair();
                self.begin(Passing::SlowLink(a, b));
            }
            Fault::ThinLink => self.begin(Passing::ThinLink(at)),
            Fault::LostPacket => self.begin(Passing::BadAir(at)),
            Fault::ClockDays => {
                let days = self.rng.random_range(1..=CLOCK_DAYS_MAX);
                let sign = if self.rng.random_bool(0.8) { 1 } else { -1 };
                self.begin(Passing::ClockDays(at, days * sign));
            }
            Fault::ClockJump => self.put_clock_wrong(at),
            _ => {
                let split = self.some_split(fault);
                self.begin(Passing::Split(split));
            }
        }
    }

    /// Everything works from now on.
    pub(super) fn clear_up(&mut self) {
        self.let_pass(Duration::MAX);
        self.weather.rolls = None;
        self.end_losses();
        self.end_folders();
        for seat in &self.seats {
            seat.host.disk.cut_power_after(u64::MAX);
            seat.host.clock.set_offset_ms(0);
            seat.host.clock.set_drift_ppm(0);
        }
        trace::event("all", "fault", format_args!("no more faults"), &[]);
    }

    pub(crate) fn cut_power(&mut self, at: usize) {
        self.seats[at].host.cut_power();
        self.count(Fault::PowerCut);
        if self.seats[at].is_up() {
            self.bring_down(at, "power is gone");
        }
    }

    fn black_out(&mut self) {
        self.count(Fault::Blackout);
        (0..self.seats.len()).for_each(|at| self.cut_power(at));
    }

    /// Has an end come in the middle of an operation soon.
    fn arm(&mut self, at: usize, fault: Fault) {
        let ops = self.rng.random_range(0..=ARMED_OPS_MAX);
        let seat = &mut self.seats[at];
        let (name, disk) = (seat.host.name(), &seat.host.disk);
        trace::event(name, "fault", format_args!("in {ops} operations: {fault}"), &[]);
        match fault {
            Fault::KillInOperation => disk.kill_after(ops),
            _ => disk.cut_power_after(ops),
        }
        seat.armed = fault;
    }

    pub(crate) fn kill(&mut self, at: usize) {
        if self.seats[at].is_up() {
            let host = &self.seats[at].host;
            trace::event(host.name(), "fault", format_args!("it is killed"), &[]);
            host.kill();
        }
    }

    pub(crate) fn restart(&mut self, at: usize) {
        if self.seats[at].is_up() {
            let host = &self.seats[at].host;
            trace::event(host.name(), "fault", format_args!("it is asked to stop"), &[]);
            host.ask_to_stop();
        }
    }

    /// Takes the next node of a rolling restart, once all are there.
    fn roll_on(&mut self) {
        let Some(at) = self.weather.rolls else { return };
        if self.seats.iter().any(|seat| !seat.is_up() || !seat.host.is_ready()) {
            return;
        }
        self.restart(at);
        self.weather.rolls = (at + 1 < self.seats.len()).then_some(at + 1);
        if self.weather.rolls.is_none() {
            self.count(Fault::RollingRestart);
        }
    }

    fn put_clock_wrong(&mut self, at: usize) {
        let (name, clock) = (self.seats[at].host.name(), &self.seats[at].host.clock);
        if self.rng.random_bool(0.5) {
            let off_ms = self.rng.random_range(-CLOCK_OFF_MS_MAX..=CLOCK_OFF_MS_MAX);
            trace::event(name, "fault", format_args!("its clock is off by {off_ms} ms"), &[]);
            clock.set_offset_ms(off_ms);
            self.count(Fault::ClockJump);
        } else {
            let ppm = self.rng.random_range(-CLOCK_DRIFT_PPM_MAX..=CLOCK_DRIFT_PPM_MAX);
            trace::event(name, "fault", format_args!("its clock gains {ppm} ppm"), &[]);
            clock.set_drift_ppm(ppm);
            self.count(Fault::ClockDrift);
        }
    }

    fn begin(&mut self, fault: Passing) {
        if self.weather.passing.iter().any(|(other, _)| other.excludes(&fault)) {
            return;
        }
        let lasts_ms = self.rng.random_range(LASTS_MS_MIN..=LASTS_MS_MAX);
        let until = self.sim.elapsed() + Duration::from_millis(lasts_ms);
        trace::event("all", "fault", format_args!("for {lasts_ms} ms: {fault}"), &[]);
        match &fault {
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
        self.weather.passing.push((fault, until));
    }

    fn let_pass(&mut self, now: Duration) {
        let (over, on): (Vec<_>, Vec<_>) =
            self.weather.passing.drain(..).partition(|(_, until)| *until <= now);
        self.weather.passing = on;
        for (fault, _) in over {
            trace::event("all", "fault", format_args!("over: {fault}"), &[]);
            match &fault {
                Passing::FullDisk(at) => self.seats[*at].host.disk.set_capacity(None),
                Passing::FailedSyncs(at) => self.mend_syncs(*at),
                Passing::FailedWrites(at) => self.seats[*at].host.disk.fail_writes(0.0),
                Passing::FailedReads(at) => self.seats[*at].host.disk.fail_reads(0.0),
                Passing::SlowDisk(at) => self.seats[*at].host.pace.set(self.weather.sync_takes),
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
        if !self.weather.stale_cache {
            self.cut_power(at);
        }
    }

    /// All operations of a kind fail, or some.
    fn some_error_odds(&mut self) -> f64 {
        if self.rng.random_bool(0.5) { 1.0 } else { self.rng.random_range(0.0..IO_ERROR_ODDS_MAX) }
    }

    /// Has all disks take the time that those of this run take.
    pub(super) fn set_paces(&self) {
        self.seats.iter().for_each(|seat| seat.host.pace.set(self.weather.sync_takes));
    }

    fn some_client(&mut self) -> String {
        client_name(self.rng.random_range(1..=CLIENTS))
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
