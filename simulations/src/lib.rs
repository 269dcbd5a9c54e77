//! The shipped node in a deterministic world.

pub mod board;
pub mod checks;
pub mod client;
pub mod det;
mod plan;
pub mod seams;
mod sweep;
pub mod trace;
pub mod workload;
pub mod world;

pub use plan::{Mutant, Outcome, Plan, SECS_DEFAULT};
pub use sweep::{Summary, sweep};
