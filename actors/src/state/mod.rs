//! Pure state machines: the control plane and the tenant, and what both are made of.
//!
//! Architecture invariant: nothing here reads a clock, chance or a file, and nothing here waits. A
//! state is a function of its log.

mod clock;
mod machine;
#[cfg(test)]
pub(crate) mod reload;
mod row_buffer;
pub mod system;
pub mod tables;
pub mod tenant;

pub use clock::{AGE_STEP_MS_MAX, StateClock};
pub use machine::StateMachine;
pub use row_buffer::{RowBuffer, decode_row, row_key};
