//! The verdict of a run that has ended: what clients learned, and what is on the disks.

use outside::checks::{events, locks};
use stateright::semantics::register::Register;

use super::Board;
use crate::checks::lock_spec::{self, Lock};
use crate::checks::object_spec::SharedObject;
use crate::checks::quotas::{self, Turns};
use crate::checks::{Checked, Logs, linear, replicas};
use crate::env::start_of_time;

/// Checks what can only be said when everything has ended: of what all clients know together, and of the
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
    let (today, turns) = (start_of_time(), Turns::of(board.days_off.borrow().values()));
    for (tenant, log) in replicas::agreed(disks)? {
        let limits = limits.get(&tenant).copied().unwrap_or_default();
        quotas::check(&tenant, limits, (today, &turns), &log)?;
        if let Some(runs) = runs.get(&tenant) {
            events::told_once(&tenant, runs, &log)?;
        }
    }
    Ok(())
}
