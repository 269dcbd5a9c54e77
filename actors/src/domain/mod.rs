//! Data and rules: what the program talks about, without any of what runs it.
//!
//! Architecture invariant: nothing here knows an actor, a port or a runtime, and nothing here waits.

pub mod codec;
pub mod ids;
pub mod json;
pub mod lock;
pub mod membership;
pub mod page;
pub mod region;
pub mod run;
pub mod secret;
pub mod tenant;
pub mod text;
pub mod time;
pub mod views;
pub mod voters;
pub mod workflow;
