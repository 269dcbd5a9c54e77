//! What the elector is told.

/// A message to the elector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElectorMessage {
    /// Leadership of the system group may have changed.
    Changed,
    /// The lock of a term could not be taken: try again.
    Announce {
        /// The term.
        term: u64,
    },
}
