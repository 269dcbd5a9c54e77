//! Bounds the bytes of all bodies under way together, fairly.
//!
//! A body is in memory from its first byte to its answer. Each is small, and there may be as many
//! as connections: together they would be gigabytes. A tenant's bodies may take as many bytes as
//! nobody has taken yet (a dynamic threshold, as switches share their buffers): one that sends a
//! lot gets half of the room, two get a third each, and there is always as much left for the next
//! one as the greediest has.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shiioo_actors::ids::TenantId;

/// Bytes of bodies under way, all together.
const BODIES_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Whose bodies they are: a tenant's, or those of calls on the cluster.
type Whose = Option<TenantId>;

/// All bodies under way. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bodies(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    bytes: usize,
    by: HashMap<Whose, usize>,
}

/// What one body takes, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    bodies: Bodies,
    whose: Whose,
    bytes: usize,
}

impl Bodies {
    /// The share of a body that has not begun.
    pub(crate) fn share(&self, whose: Whose) -> Share {
        Share { bodies: self.clone(), whose, bytes: 0 }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn has_room(&self, whose: Whose, bytes: usize) -> bool {
        let own = self.by.get(&whose).copied().unwrap_or_default();
        own.saturating_add(bytes) <= BODIES_BYTES_MAX - self.bytes
    }
}

impl Share {
    /// Whether this many more bytes have room now.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.bodies.taken().has_room(self.whose, bytes)
    }

    /// Takes more bytes, where there is room.
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        let mut taken = self.bodies.taken();
        if !taken.has_room(self.whose, bytes) {
            return false;
        }
        taken.bytes += bytes;
        *taken.by.entry(self.whose).or_default() += bytes;
        self.bytes += bytes;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut taken = self.bodies.taken();
        taken.bytes -= self.bytes;
        if let Some(own) = taken.by.get_mut(&self.whose) {
            *own -= self.bytes;
            if *own == 0 {
                taken.by.remove(&self.whose);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    fn tenant(number: u8) -> Whose {
        Some(format!("550e8400-e29b-41d4-a716-4466554400{number:02}").parse().unwrap())
    }

    /// Bodies of 1 MiB until there is no room for another.
    fn greedy(bodies: &Bodies, whose: Whose) -> Vec<Share> {
        let mut shares = Vec::new();
        loop {
            let mut share = bodies.share(whose);
            if !share.take(MIB) {
                return shares;
            }
            shares.push(share);
        }
    }

    #[test]
    fn whoever_comes_late_finds_as_much_as_the_greediest_has() {
        let bodies = Bodies::default();
        let first = greedy(&bodies, tenant(1));
        assert_eq!(first.len(), 32);
        assert_eq!(greedy(&bodies, None).len(), 16);
        let second = greedy(&bodies, tenant(2));
        assert_eq!((second.len(), greedy(&bodies, tenant(3)).len()), (16, 8));
        let mut late = bodies.share(tenant(4));
        assert!(late.has_room(8 * MIB as u64) && !late.has_room(17 * MIB as u64));
        assert!(late.take(8 * MIB));
    }

    #[test]
    fn what_was_answered_takes_nothing() {
        let bodies = Bodies::default();
        drop(greedy(&bodies, tenant(1)));
        drop(bodies.share(None));
        let taken = bodies.taken();
        assert_eq!((taken.bytes, taken.by.len()), (0, 0));
    }
}
