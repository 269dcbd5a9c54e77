//! The world
mod host;
pub use host::{API_PORT, Exit, NodeHost};
