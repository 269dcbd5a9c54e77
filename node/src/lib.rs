//! shiioo as a library: a whole node, wired from its rooms, to start and stop inside any program.
//!
//! The binary of the same name is [`program::main`] and nothing else. A test or a simulation
//! builds a [`Config`] by hand and starts the same [`Node`] over other [`NodeSeams`].
//!
//! Architecture invariant: a node keeps nothing in statics. Several nodes live in one process.

pub mod config;
mod door;
pub mod identity;
mod joining;
mod node;
mod own_log;
pub mod program;
mod rooms;
mod seams;

pub use config::Config;
pub use joining::JoiningError;
pub use node::{Node, NodeFailure, StartError};
pub use rooms::RoomsError;
pub use seams::{NodeSeams, OsEntropy, SystemClock};
