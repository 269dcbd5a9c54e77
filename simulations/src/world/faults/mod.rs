//! What happens to the hosts: the faults by name, which of them comes when, and how it passes.

mod fault;
mod network;
mod odds;
mod passing;
mod schedule;

pub use fault::Fault;
pub(super) use schedule::Schedule;
