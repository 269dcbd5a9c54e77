//! What stands under the node instead of the operating system: one file per seam.

mod chance;
mod disk;
mod tcp;
mod udp;

pub use chance::{SeededEntropy, SimClock, start_of_time};
pub use disk::{DiskFaultsSeen, Process, TracedDisk};
pub use tcp::SimTcp;
pub use udp::{Air, Odds, SimUdp};
