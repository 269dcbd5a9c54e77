//! Tables that both state machines have, each with the rows that it is written to.

pub(crate) mod completion_records;
pub mod idempotency;
pub mod lock_table;
