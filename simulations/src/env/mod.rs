//! What stands under a run instead of the operating system: a file for each seam of the node, chance
//! under control, what happened, and what it took.

mod chance;
pub mod det;
mod disk;
pub mod heap;
mod tcp;
pub mod trace;
mod udp;

pub use chance::{SeededEntropy, SimClock, start_of_time};
pub use disk::{DiskFaultsSeen, Process, TracedDisk};
pub use tcp::SimTcp;
pub use udp::{Air, Odds, SimUdp};
