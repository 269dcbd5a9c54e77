//! Why a tenant's move does not come further, and whether it ever would.

use std::time::Duration;

use super::copying::TooManyRows;
use super::target_room::NoRoom;
use crate::ports::StoreError;
use crate::ports::error::CallError;

/// Why a move does not come further at the moment.
#[derive(Debug, thiserror::Error)]
pub(super) enum Hindrance {
    #[error("{0}")]
    Call(#[from] CallError),
    #[error("{0}")]
    Store(StoreError),
    /// Nothing was sent: what is copied has to be in files first.
    #[error(
        "the disk of the node that leads the source is full, so that what the tenant holds cannot be written down, and \
         not be copied; make room there, and ask for the region again"
    )]
    SourceFull,
    #[error("{0}")]
    Rows(#[from] TooManyRows),
    /// Nothing was sent.
    #[error("{0}")]
    NoRoom(#[from] NoRoom),
    /// What was sent is in the way there.
    #[error("the target has no room for the rest of the tenant: {0}")]
    Filled(String),
    #[error("{0} took longer than {1:?}")]
    Late(&'static str, Duration),
    #[error("{0} did not count: the move has gone on without this node")]
    Superseded(&'static str),
}

/// Stores are read in the source only.
impl From<StoreError> for Hindrance {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::SourceFull,
            error => Self::Store(error),
        }
    }
}

impl Hindrance {
    /// Says why the source did not take what it was told on the node that leads it.
    pub(super) fn of_source(error: CallError) -> Self {
        match error {
            CallError::DiskFull => Self::SourceFull,
            error => Self::Call(error),
        }
    }

    /// Tells whether the move is called off at once, because another attempt would come no further, or do harm.
    pub(super) const fn is_hopeless(&self) -> bool {
        match self {
            // Rows do not become fewer by another attempt, which writes all of them to the target again.
            Self::Rows(_)
            // A copy that fills the target's disks has to go from there, for the sake of everybody else.
            | Self::Filled(_)
            // Each attempt takes steps, which a full disk takes from the log's reserve, and then copies nothing.
            | Self::SourceFull => true,
            Self::Call(_)
            | Self::Store(_)
            | Self::NoRoom(_)
            | Self::Late(..)
            | Self::Superseded(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;
    use crate::domain::ids::RaftId;

    #[test]
    fn a_source_without_room_ends_the_move_at_once() {
        let full = Hindrance::from(StoreError::Full);
        assert!(full.is_hopeless() && full.to_string().contains("source is full"), "{full}");
        assert!(Hindrance::of_source(CallError::DiskFull).is_hopeless());
        assert!(!Hindrance::of_source(CallError::NoLeader).is_hopeless());
        assert!(Hindrance::Filled("it is full".to_owned()).is_hopeless());
        let read = StoreError::Io {
            what: "read the tenant".to_owned(),
            source: Arc::new(io::Error::other("later")),
        };
        let no_room = NoRoom { node: RaftId(2), free: 1, needed: 2 };
        for again in [read.into(), CallError::DiskFull.into(), Hindrance::from(no_room)] {
            assert!(!again.is_hopeless(), "{again}");
        }
    }
}
