//! Faults: which, when, and how they pass.

use std::fmt;
use std::io;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::SmallRng;
use shiioo_storage::disk::{Disk, OpenMode};

use super::{CLIENTS, NODE, NodeState, World};
use crate::workload::client_name;
use crate::{Plan, trace};

/// Time between two faults, ms.
const GAP_MS_MIN: u64 = 100;
const GAP_MS_MAX: u64 = 4000;
/// A power cut that is armed comes within so many operations of the disk.
const CUT_OPS_MAX: u64 = 120;
/// A fault that passes lasts so long, ms.
const LASTS_MS_MIN: u64 = 50;
const LASTS_MS_MAX: u64 = 3000;
/// How much room a disk that is filling up still has, bytes.
const ROOM_BYTES_MAX: u64 = 96 << 10;
/// A clock is off by at most so much, ms. What waits for a moment of wall time waits longer when the
/// clock is set back, by twice this at most.
const CLOCK_OFF_MS_MAX: i64 = 10_000;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Power goes between two operations of the disk.
    PowerCut,
    /// Power goes in the middle of one.
    PowerCutInOperation,
    /// The process is killed.
    Kill,
    /// The process is killed in the middle of an operation of the disk.
    KillInOperation,
    /// The process is stopped cleanly.
    Restart,
    /// There is no room on the disk for a while; counted by refused writes.
    FullDisk,
    /// Syncs fail for a while; counted one by one.
    FailedSyncs,
    /// The node ended by itself, with a reason.
    NodeFailed,
    /// A client and the node cannot reach each other for a while.
    LostLink,
    /// Messages between a client and the node are held up for a while.
    SlowLink,
    /// The node's wall clock jumps.
    ClockJump,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PowerCut => "power cuts between operations",
            Self::PowerCutInOperation => "power cuts in an operation",
            Self::Kill => "kills",
            Self::KillInOperation => "kills in an operation",
            Self::Restart => "clean restarts",
            Self::FullDisk => "writes that found no room",
            Self::FailedSyncs => "syncs that failed",
            Self::NodeFailed => "failures of the node by itself",
            Self::LostLink => "lost links to a client",
            Self::SlowLink => "held links to a client",
            Self::ClockJump => "jumps of the wall clock",
        })
    }
}

/// What is going on, and what comes next.
pub(super) struct Weather {
    enabled: bool,
    next_at: Duration,
    /// The faults that have to pass, and when.
    passing: Vec<(Passing, Duration)>,
    /// What was last armed to come in the middle of an operation.
    armed: Fault,
    /// Whether a process can read what a failed sync has dropped.
    stale_cache: bool,
}

/// A fault that passes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Passing {
    FullDisk,
    FailedSyncs,
    Link(String),
    HeldLink(String),
}

impl Weather {
    pub(super) fn new(plan: &Plan, rng: &mut SmallRng) -> Self {
        Self {
            enabled: plan.faults,
            next_at: Duration::from_millis(rng.random_range(0..=GAP_MS_MAX)),
            passing: Vec::new(),
            armed: Fault::PowerCutInOperation,
            stale_cache: plan.stale_cache,
        }
    }

    /// What it was that came in the middle of an operation.
    pub(super) fn armed(&self) -> Fault {
        self.armed
    }
}

impl World {
    /// Lets faults pass whose time has come, and the next one happen.
    pub(super) fn next_fault(&mut self) {
        let now = self.sim.elapsed();
        self.let_pass(now);
        if !self.weather.enabled || now < self.weather.next_at {
            return;
        }
        let gap_ms = self.rng.random_range(GAP_MS_MIN..=GAP_MS_MAX);
        self.weather.next_at = now + Duration::from_millis(gap_ms);
        match self.rng.random_range(0..100) {
            0..15 => self.cut_power(),
            15..32 => self.arm(Fault::PowerCutInOperation),
            32..42 => self.arm(Fault::KillInOperation),
            42..52 => self.kill(),
            52..60 => self.restart(),
            60..70 => self.begin(Passing::FullDisk),
            70..76 => self.begin(Passing::FailedSyncs),
            76..84 => {
                let client = self.some_client();
                self.begin(Passing::Link(client));
            }
            84..92 => {
                let client = self.some_client();
                self.begin(Passing::HeldLink(client));
            }
            _ => self.jump_clock(),
        }
    }

    /// Everything works from now on.
    pub(super) fn clear_up(&mut self) {
        self.let_pass(Duration::MAX);
        self.board.node.disk.cut_power_after(u64::MAX);
        self.board.node.clock.set_offset_ms(0);
        trace::event("all", "fault", format_args!("no more faults"), &[]);
    }

    fn cut_power(&mut self) {
        self.board.node.cut_power();
        self.count(Fault::PowerCut);
        if matches!(self.state, NodeState::Up(_)) {
            self.bring_down("power is gone");
        }
    }

    /// Has an end come in the middle of an operation soon.
    fn arm(&mut self, fault: Fault) {
        let ops = self.rng.random_range(0..=CUT_OPS_MAX);
        trace::event(NODE, "fault", format_args!("in {ops} operations: {fault}"), &[]);
        let disk = &self.board.node.disk;
        match fault {
            Fault::KillInOperation => disk.kill_after(ops),
            _ => disk.cut_power_after(ops),
        }
        self.weather.armed = fault;
    }

    fn kill(&mut self) {
        if matches!(self.state, NodeState::Up(_)) {
            trace::event(NODE, "fault", format_args!("it is killed"), &[]);
            self.board.node.kill();
        }
    }

    fn restart(&mut self) {
        if matches!(self.state, NodeState::Up(_)) {
            trace::event(NODE, "fault", format_args!("it is asked to stop"), &[]);
            self.board.node.ask_to_stop();
        }
    }

    fn jump_clock(&mut self) {
        let off_ms = self.rng.random_range(-CLOCK_OFF_MS_MAX..=CLOCK_OFF_MS_MAX);
        trace::event(NODE, "fault", format_args!("its clock is off by {off_ms} ms"), &[]);
        self.board.node.clock.set_offset_ms(off_ms);
        self.count(Fault::ClockJump);
    }

    fn begin(&mut self, fault: Passing) {
        if self.weather.passing.iter().any(|(other, _)| other.excludes(&fault)) {
            return;
        }
        let lasts_ms = self.rng.random_range(LASTS_MS_MIN..=LASTS_MS_MAX);
        let until = self.sim.elapsed() + Duration::from_millis(lasts_ms);
        let disk = &self.board.node.disk;
        match &fault {
            Passing::FullDisk => {
                let room = self.rng.random_range(0..=ROOM_BYTES_MAX);
                trace::event(NODE, "fault", format_args!("{room} bytes are free"), &[]);
                disk.set_capacity(Some(used(&*disk.mount()) + room));
            }
            Passing::FailedSyncs => {
                trace::event(NODE, "fault", format_args!("syncs fail"), &[]);
                disk.fail_syncs(true);
            }
            Passing::Link(client) => {
                trace::event(client, "fault", format_args!("it is cut off"), &[]);
                self.sim.partition(NODE, client.as_str());
                self.count(Fault::LostLink);
            }
            Passing::HeldLink(client) => {
                trace::event(client, "fault", format_args!("its messages are held"), &[]);
                self.sim.hold(NODE, client.as_str());
                self.count(Fault::SlowLink);
            }
        }
        self.weather.passing.push((fault, until));
    }

    fn let_pass(&mut self, now: Duration) {
        let (over, on): (Vec<_>, Vec<_>) =
            self.weather.passing.drain(..).partition(|(_, until)| *until <= now);
        self.weather.passing = on;
        for (fault, _) in over {
            trace::event("all", "fault", format_args!("over: {fault:?}"), &[]);
            match &fault {
                Passing::FullDisk => self.board.node.disk.set_capacity(None),
                Passing::FailedSyncs => self.mend_syncs(),
                Passing::Link(client) => self.sim.repair(NODE, client.as_str()),
                Passing::HeldLink(client) => self.sim.release(NODE, client.as_str()),
            }
        }
    }

    /// Syncs work again. What a failed one dropped may still be read until power goes: unless
    /// that is what the run is about, it goes now, as with a disk that was replaced.
    fn mend_syncs(&mut self) {
        self.board.node.disk.fail_syncs(false);
        if !self.weather.stale_cache {
            self.cut_power();
        }
    }

    fn some_client(&mut self) -> String {
        client_name(self.rng.random_range(1..=CLIENTS))
    }
}

impl Passing {
    /// Whether the two cannot be in force together.
    fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Link(client) | Self::HeldLink(client),
                Self::Link(other) | Self::HeldLink(other),
            ) => client == other,
            _ => self == other,
        }
    }
}

/// Bytes in all files of a disk.
fn used(disk: &dyn Disk) -> u64 {
    walk(disk, "").into_iter().map(|(_, len)| len).sum()
}

/// All files of a name, with their contents.
pub(super) fn read_all(disk: &dyn Disk, name: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let named =
        walk(disk, "").into_iter().filter(|(path, _)| path.rsplit('/').next() == Some(name));
    named
        .map(|(path, len)| {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
            disk.open(&path, OpenMode::Existing)?.read_at(0, &mut bytes)?;
            Ok((path, bytes))
        })
        .collect()
}

/// All files below a directory, with their lengths.
fn walk(disk: &dyn Disk, dir: &str) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for entry in disk.list(dir).unwrap_or_default() {
        let path =
            if dir.is_empty() { entry.name.clone() } else { format!("{dir}/{}", entry.name) };
        if entry.is_dir {
            found.extend(walk(disk, &path));
        } else {
            found.push((path, entry.len));
        }
    }
    found
}
