//! What the disk of a node that does not run holds, compared with those of the others.

use shiioo_actors::ports::StoreError;
use shiioo_storage::inspect;

use crate::checks::{Checked, Violation};
use crate::env::trace;
use crate::world::{World, files};

/// The index of the control plane, which every node has.
const SYSTEM_INDEX: &str = "system.redb";

impl World {
    /// Looks at what the last life of a node has left, before the next one begins. What cannot be
    /// read is left to that one to complain about.
    ///
    /// # Errors
    /// When it differs from what others have or had.
    pub(in crate::world) fn examine(&mut self, at: usize) -> Checked {
        self.examine_parts(at, |path| path == SYSTEM_INDEX).or_else(|problem| match problem {
            Problem::Unreadable(error) => {
                let name = self.seats[at].host.name();
                trace::event(name, "disk", format_args!("not to be read: {error}"), &[]);
                Ok(())
            }
            Problem::Differs(violation) => Err(violation),
        })
    }

    /// Looks at all that a node that was stopped cleanly has left.
    ///
    /// # Errors
    /// When it cannot be read, or differs from what others have or had.
    pub(in crate::world) fn examine_all(&mut self, at: usize) -> Checked {
        self.examine_parts(at, |path| path.ends_with(".redb")).map_err(|problem| match problem {
            Problem::Unreadable(error) => {
                let name = self.seats[at].host.name();
                Violation(format!("the disk of {name} after a clean stop: {error}"))
            }
            Problem::Differs(violation) => violation,
        })
    }

    fn examine_parts(&mut self, at: usize, wanted: fn(&str) -> bool) -> Result<(), Problem> {
        let host = &self.seats[at].host;
        let disk = host.disk.fork().mount();
        let log = inspect::log(&*disk)?;
        self.matching.learn_log(host.name(), &log)?;
        for path in files::paths(&*disk).into_iter().filter(|path| wanted(path)) {
            let Some(part) = inspect::part(&disk, &path)? else { continue };
            if path == SYSTEM_INDEX {
                self.matching.learn_committed(host.name(), &log, part.applied)?;
            }
            self.matching.learn_part(host.name(), &path, part)?;
        }
        Ok(())
    }
}

enum Problem {
    Unreadable(StoreError),
    Differs(Violation),
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::Unreadable(error)
    }
}

impl From<Violation> for Problem {
    fn from(violation: Violation) -> Self {
        Self::Differs(violation)
    }
}
