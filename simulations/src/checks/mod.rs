//! What must hold. Each file states its promise and compares plain facts with it.

pub mod durability;
pub mod events;
pub mod liveness;
pub mod locks;
pub mod quotas;
pub mod steps;

use std::fmt;

/// A promise that was broken: which, and how it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

/// Holds, or not.
pub type Checked<T = ()> = Result<T, Violation>;

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
