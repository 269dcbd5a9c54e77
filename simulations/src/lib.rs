//! The shipped node in a deterministic world.
pub mod client;
pub mod det;
pub mod seams;
pub mod trace;
pub mod world;
