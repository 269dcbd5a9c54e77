//! Whether there is room for what other replicas send, and what there was none for.
//!
//! Whoever sends says first how much it is, and tries again later where there is no room. The node says so
//! meanwhile: it lacks something that only a person can give it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shiioo_actors::domain::ids::StateMachineId;
use tokio::time::Instant;

use super::snapshot_wire::NoRoom;
use crate::disk::{Disk, room_for_copies};

/// How long what found no room counts as lacking. Whoever sends tries again within half of that.
const LACKING_FOR: Duration = Duration::from_secs(120);

/// The room of one node, for all its groups.
#[derive(Debug)]
pub(crate) struct CopyRoom {
    disk: Arc<dyn Disk>,
    lacking: Mutex<BTreeMap<StateMachineId, Lacking>>,
}

/// What there was no room for.
#[derive(Debug, Clone, Copy)]
struct Lacking {
    bytes: u64,
    at: Instant,
}

impl CopyRoom {
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, lacking: Mutex::default() }
    }

    /// Tells how many bytes copies may take. A disk that does not say is tried.
    pub fn bytes(&self) -> u64 {
        room_for_copies(self.disk.as_ref()).unwrap_or(u64::MAX)
    }

    /// Looks whether there is room for a state machine, and remembers where there is none.
    pub fn look(&self, part: StateMachineId, bytes: u64) -> Result<(), NoRoom> {
        let free = self.bytes();
        if bytes < free {
            return Ok(());
        }
        self.lacked(part, bytes);
        Err(NoRoom { free })
    }

    /// Remembers that there was no room for a state machine, of which so much is known.
    pub fn lacked(&self, part: StateMachineId, bytes: u64) -> NoRoom {
        let free = self.bytes();
        let now = Instant::now();
        let mut lacking = self.lacking.lock();
        // What it is in all was said before its pieces came.
        let known = lacking.get(&part).map_or(0, |known| known.bytes);
        if lacking.insert(part, Lacking { bytes: bytes.max(known), at: now }).is_none() {
            tracing::error!(%part, bytes, free, "there is no room for what another replica sends");
        }
        NoRoom { free }
    }

    /// Notes that a state machine is in its place.
    pub fn arrived(&self, part: StateMachineId) {
        self.lacking.lock().remove(&part);
    }

    /// Says what there is no room for; `None` where nothing is lacking.
    pub fn lacks(&self) -> Option<String> {
        let mut lacking = self.lacking.lock();
        lacking.retain(|_, lacking| lacking.at.elapsed() < LACKING_FOR);
        let largest = lacking.values().map(|lacking| lacking.bytes).max()?;
        Some(format!(
            "the disk has no room for {} of the state machines that other replicas send: {} bytes may be taken, and \
             the largest needs {largest}; make room, the rest is done by itself",
            lacking.len(),
            self.bytes()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;

    #[tokio::test(start_paused = true)]
    async fn what_finds_no_room_is_named_until_it_arrives_or_nobody_sends_it() {
        let disk = SimDisk::new(1);
        let room = CopyRoom::new(disk.mount());
        let part = StateMachineId::System;
        assert_eq!((room.look(part, 1 << 40), room.lacks()), (Ok(()), None));
        disk.set_capacity(Some(0));
        assert_eq!(room.look(part, 700), Err(NoRoom { free: 0 }));
        let lacks = room.lacks().unwrap();
        assert!(lacks.contains("1 of the state machines") && lacks.contains("700"), "{lacks}");
        // A piece knows less of it.
        room.lacked(part, 5);
        assert_eq!(room.lacks().unwrap(), lacks);
        room.arrived(part);
        assert_eq!(room.lacks(), None);
        room.lacked(part, 5);
        tokio::time::advance(LACKING_FOR).await;
        assert_eq!(room.lacks(), None);
    }
}
