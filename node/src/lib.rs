//! shiioo as a library: a whole node, wired from its services, to start and stop inside any program.
//!
//! The binary of the same name is [`cli::main`] and nothing else. A test or a simulation builds a
//! [`Config`] by hand and starts the same [`Node`] over other [`NodeSeams`].
//!
//! Architecture invariant: a node keeps nothing in statics. Several nodes live in one process.
//!
//! Architecture invariant: folders and files import downwards only, and there is no circle between
//! files of different folders. From the bottom: `client_threads`, `seams`, `config`, `identity`, `sockets`,
//! `known_members`, `own_log`, `joining`, `replacement`, `dispatch`, `wiring`, `node`, `recovery`, `repair`, `cli`.

pub mod cli;
mod client_threads;
pub mod config;
mod default_tenant;
mod dispatch;
pub mod identity;
mod joining;
mod known_members;
mod node;
mod own_log;
mod recovery;
mod repair;
mod replacement;
mod seams;
mod sockets;
mod wiring;

pub use client_threads::ClientThreads;
pub use config::Config;
pub use joining::JoiningError;
pub use node::{Node, NodeFailure, StartError};
pub use own_log::OwnLogError;
pub use replacement::ReplacementError;
pub use seams::{NodeSeams, OsEntropy, SystemClock};
pub use sockets::BindError;
pub use wiring::ServicesError;
