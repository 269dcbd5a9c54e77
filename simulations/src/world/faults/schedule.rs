//! Which fault comes when.

use std::time::Duration;

use rand::Rng as _;
use rand::rngs::SmallRng;

use super::Fault;
use super::odds::Odds;
use super::passing::Passing;
use crate::env::trace;
use crate::plan::{CLIENTS, Plan, client_name};
use crate::world::World;

/// Time between two faults, ms.
const GAP_MS_MIN: u64 = 100;
const GAP_MS_MAX: u64 = 4000;
const HECTIC_GAP_MS_MAX: u64 = 900;
/// The end of a process that is armed comes within so many operations of its disk.
const ARMED_OPS_MAX: u64 = 120;
/// Work with a sync in it takes at most so long on any disk, µs, which half of the runs have.
const SYNC_US_MAX: u64 = 3000;
/// A clock is off by at most so much, ms. What waits for a moment of wall time waits longer when the
/// clock is set back, by twice this at most.
const CLOCK_OFF_MS_MAX: i64 = 10_000;
/// A clock gains or loses at most so much, millionths.
const CLOCK_DRIFT_PPM_MAX: i64 = 2000;
/// A clock that is wrong by days is wrong by so many at most.
const CLOCK_DAYS_MAX: i64 = 40;

/// What is going on, and what comes next.
pub(in crate::world) struct Schedule {
    enabled: bool,
    next_at: Duration,
    gap_ms_max: u64,
    /// How likely each fault is in this run.
    odds: Odds,
    /// The faults that have to pass, and when.
    pub(super) passing: Vec<(Passing, Duration)>,
    /// The node that a rolling restart takes next.
    rolls: Option<usize>,
    /// What work with a sync in it takes.
    pub(super) sync_takes: Duration,
    /// Whether a process can read what a failed sync has dropped.
    pub(super) stale_cache: bool,
}

impl Schedule {
    pub(in crate::world) fn new(plan: &Plan, rng: &mut SmallRng) -> Self {
        // The first that is drawn: a seed means the same as before as long as the order stays.
        let odds = Odds::of(plan, rng);
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
    pub(in crate::world) fn is_quiet(&self) -> bool {
        self.passing.is_empty() && self.rolls.is_none()
    }
}

impl World {
    /// Lets faults pass whose time has come, and the next one happen.
    pub(in crate::world) fn next_fault(&mut self) {
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
        self.return_folder(now);
        if !self.schedule.enabled || now < self.schedule.next_at {
            return;
        }
        let gap_ms = self.rng.random_range(GAP_MS_MIN..=self.schedule.gap_ms_max);
        self.schedule.next_at = now + Duration::from_millis(gap_ms);
        let Some(fault) = self.schedule.odds.draw(&mut self.rng) else { return };
        let at = self.rng.random_range(0..self.seats.len());
        self.happen(fault, at);
    }

    /// Has a fault happen, to the node in this place where it is a node's.
    fn happen(&mut self, fault: Fault, at: usize) {
        match fault {
            Fault::PowerCut => self.cut_power(at),
            Fault::PowerCutInOperation | Fault::KillInOperation => self.arm(at, fault),
            Fault::Blackout => self.black_out(),
            Fault::Kill => self.kill(at),
            Fault::Restart => self.restart(at),
            Fault::RollingRestart => self.schedule.rolls = self.schedule.rolls.or(Some(0)),
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
            Fault::ReturnedFolder => self.keep_folder(),
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
    pub(in crate::world) fn clear_up(&mut self) {
        self.let_pass(Duration::MAX);
        self.schedule.rolls = None;
        self.end_losses();
        self.end_folders();
        self.kept = None;
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
        let Some(at) = self.schedule.rolls else { return };
        if self.seats.iter().any(|seat| !seat.is_up() || !seat.host.is_ready()) {
            return;
        }
        self.restart(at);
        self.schedule.rolls = (at + 1 < self.seats.len()).then_some(at + 1);
        if self.schedule.rolls.is_none() {
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

    /// Has all disks take the time that those of this run take.
    pub(crate) fn set_paces(&self) {
        self.seats.iter().for_each(|seat| seat.host.pace.set(self.schedule.sync_takes));
    }

    fn some_client(&mut self) -> String {
        client_name(self.rng.random_range(1..=CLIENTS))
    }
}
