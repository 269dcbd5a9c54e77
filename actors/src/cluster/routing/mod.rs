//! Where groups are led, and the way of a command to the node that leads its group.

mod leader_hint;
mod directory;
mod router;

pub use leader_hint::LeaderHint;
pub use directory::{Directory, TenantLocation};
pub use router::{Lead, Router, RouterSources};
