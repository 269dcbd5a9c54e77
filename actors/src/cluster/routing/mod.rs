//! Where groups are led, and the way of a command to the node that leads its group.

mod claim;
mod directory;
mod router;

pub use claim::Claim;
pub use directory::{Directory, Placed};
pub use router::{Lead, Router, RouterSources};
