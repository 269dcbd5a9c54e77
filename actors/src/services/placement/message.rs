//! What placement is told.

/// A message to placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlacementMessage {
    /// Look whether something is to be done.
    Look,
    /// The step that was under way has ended.
    Done,
}
