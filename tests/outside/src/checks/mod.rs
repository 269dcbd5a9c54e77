//! What must hold. Each file states its promise, compares plain facts with it, and has tests that
//! break it.

pub mod events;
pub mod locks;
pub mod runs;

use std::fmt;

/// A promise that was broken: which, and how it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

/// Holds, or not.
pub type Checked<T = ()> = Result<T, Violation>;

/// Gives what a check gives; panics where a promise was broken.
#[track_caller]
pub fn demand<T>(checked: Checked<T>) -> T {
    checked.unwrap_or_else(|broken| panic!("{broken}"))
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

/// Returns a [`Violation`] unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($holds:expr, $($says:tt)+) => {
        if !$holds {
            return Err($crate::checks::Violation(format!($($says)+)));
        }
    };
}
