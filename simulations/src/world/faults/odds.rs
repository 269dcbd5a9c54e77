//! How likely each fault is.

use rand::Rng as _;
use rand::rngs::SmallRng;

use super::Fault;
use crate::plan::{Mix, Plan};

/// How much more likely than the others a seed's favourite faults are.
const FAVOURED: u32 = 4;

/// How likely each fault is among the others of a mix, before a seed has its favourites.
const ODDS: [(Mix, Fault, u32); 36] = [
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
    (Mix::Disks, Fault::ReturnedFolder, 4),
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

/// The odds of one run: a seed has its favourites.
pub(super) struct Odds(Vec<(Fault, u32)>);

impl Odds {
    pub(super) fn of(plan: &Plan, rng: &mut SmallRng) -> Self {
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
        Self(odds)
    }

    /// Draws the next fault; none where no fault can happen.
    pub(super) fn draw(&self, rng: &mut SmallRng) -> Option<Fault> {
        let all: u32 = self.0.iter().map(|(_, odds)| odds).sum();
        let mut drawn = rng.random_range(0..all.max(1));
        self.0.iter().find_map(|(fault, odds)| {
            let chosen = drawn < *odds;
            drawn = drawn.saturating_sub(*odds);
            chosen.then_some(*fault)
        })
    }
}
