//! Lacks that pass by themselves: no room on the disk, no file descriptor.
//!
//! Neither says anything about the file that was to be written or opened, and both end without the
//! program's doing. So whoever meets one waits and tries again, and nobody takes it for damage or
//! for a dead disk. This is the one place that says which errors those are, and how long to wait.

use std::io;
use std::time::Duration;

use shiioo_actors::ports::StoreError;
use shiioo_actors::ports::descriptors::is_exhausted;

/// Wait before a write that found no room is tried again.
const ROOM_RETRY: Duration = Duration::from_millis(200);

/// Wait before a file that found no descriptor is opened again.
const DESCRIPTORS_RETRY: Duration = Duration::from_millis(100);

/// What an operation failed for the lack of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shortage {
    Room,
    /// The process, or the whole system, has as many files open as it may.
    Descriptors,
}

impl Shortage {
    /// Recognizes an operating system's error that passes by itself.
    pub fn of(error: &io::Error) -> Option<Self> {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            Some(Self::Room)
        } else {
            is_exhausted(error).then_some(Self::Descriptors)
        }
    }

    /// Recognizes the same in what the actors are told.
    pub fn of_store(error: &StoreError) -> Option<Self> {
        match error {
            StoreError::Full => Some(Self::Room),
            StoreError::Io { source, .. } => Self::of(source),
            _ => None,
        }
    }

    /// Gives the wait before the operation is tried again.
    pub const fn retry_after(self) -> Duration {
        match self {
            Self::Room => ROOM_RETRY,
            Self::Descriptors => DESCRIPTORS_RETRY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::store_error;

    #[test]
    fn only_lacks_that_pass_are_shortages() {
        // ENOSPC, EDQUOT; ENFILE, EMFILE; ENOENT, EIO, EACCES.
        for (code, expected) in [
            (28, Some(Shortage::Room)),
            (122, Some(Shortage::Room)),
            (23, Some(Shortage::Descriptors)),
            (24, Some(Shortage::Descriptors)),
            (2, None),
            (5, None),
            (13, None),
        ] {
            let error = || io::Error::from_raw_os_error(code);
            assert_eq!(Shortage::of(&error()), expected, "{}", error());
            let told = store_error("open it", error());
            assert_eq!(Shortage::of_store(&told), expected, "{told}");
        }
        let damaged = StoreError::Damaged { file: "a".into(), offset: 0, what: "torn".into() };
        assert_eq!(Shortage::of_store(&damaged), None);
    }
}
