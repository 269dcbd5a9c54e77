//! What the tool says, and the ways to use it that need more than a run.

pub mod log;
pub mod meta;
pub mod report;
pub mod stories;
