//! What must hold. Each file states its promise and compares plain facts with it.

pub mod durability;
pub mod events;
pub mod leaders;
pub mod linear;
pub mod liveness;
pub mod lock_spec;
pub mod locks;
pub mod lost_data;
pub mod matching;
pub mod memory;
pub mod object_spec;
pub mod out_of_service;
pub mod quotas;
pub mod reads;
pub mod replicas;
pub mod steps;
pub mod terms;

use std::fmt;

use stateright::semantics::register::Register;

use crate::board::Board;
use crate::seams;
use crate::workload::SharedObject;
use lock_spec::Lock;
use quotas::Turns;
pub use replicas::Logs;

/// A promise that was broken: which, and how it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

/// Holds, or not.
pub type Checked<T = ()> = Result<T, Violation>;

/// What can only be said when everything has ended: of what all clients know together, and of the
/// disks.
///
/// # Errors
/// The first promise that was broken.
pub fn whole(board: &Board, disks: &[Logs]) -> Checked {
    locks::check(&board.locks.borrow())?;
    for ((space, key), history) in &*board.lock_ops.borrow() {
        let history = lock_spec::beginning(history);
        linear::check(&format!("lock {key} of {space}"), Lock::default(), &history)?;
    }
    if let Some(register) = &*board.register.borrow() {
        let initial = Register(register.initial.clone());
        linear::check("the description of the shared tenant", initial, &register.history)?;
    }
    board.objects.borrow().iter().try_for_each(SharedObject::check)?;
    let (limits, runs) = (board.limits.borrow(), board.runs.borrow());
    let (today, turns) = (seams::start_of_time(), Turns::of(board.days_off.borrow().values()));
    for (tenant, events) in replicas::agreed(disks)? {
        let limits = limits.get(&tenant).copied().unwrap_or_default();
        quotas::check(&tenant, limits, (today, &turns), &events)?;
        if let Some(runs) = runs.get(&tenant) {
            steps::check(&tenant, runs, &events)?;
        }
    }
    Ok(())
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
