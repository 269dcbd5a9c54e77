//! Where groups are led, and the way of a command to the node that leads its group.

mod directory;
mod leader_hint;
mod router;

pub use directory::{Directory, TenantLocation};
pub use leader_hint::{LeaderHint, LeaderHints};
pub use router::{Lead, Router, RouterSources};
