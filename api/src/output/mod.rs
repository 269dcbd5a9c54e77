//! What the API answers with: JSON, pages of lists, and problems.
//!
//! Invariant: errors of the handles become errors of the API in one place, `errors`.

mod errors;
pub(crate) mod event_stream;
pub(crate) mod page;
pub(crate) mod problem;
pub(crate) mod reply;
pub(crate) mod wording;
