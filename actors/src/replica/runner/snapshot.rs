//! What one replica of the control plane sends to another: all its rows at one position.

use super::ReplicaRunner;
use crate::ports::{Dump, Found, StoreError};
use crate::state::StateMachine;

/// Upper bound of the length of a row's key, bytes. The longest are those of locks.
const KEY_BYTES_MAX: usize = 1024;

impl<M: StateMachine> ReplicaRunner<M> {
    /// Returns everything that the replica holds. It is durable then, unless the disk is full.
    ///
    /// # Errors
    /// When the files fail.
    pub async fn dump(&mut self) -> Result<Dump, StoreError> {
        self.make_durable().await?;
        Ok(Dump { position: self.applied, rows: self.all_rows()? })
    }

    /// Takes over what another replica holds, and makes it durable. Tells whether the dump is newer
    /// than what is here; an older one changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Full`] when the dump was taken over and waits in memory for room. Other errors when
    /// the files fail.
    pub async fn install(&mut self, dump: Dump) -> Result<bool, StoreError> {
        let is_newer = dump.position > self.applied;
        if is_newer {
            self.to_install = Some(dump);
        }
        self.settle().await?;
        Ok(is_newer)
    }

    /// Makes everything durable, first of all the dump of another replica.
    ///
    /// # Errors
    /// [`StoreError::Full`] while there is no room for it. Other errors when the files fail.
    pub async fn settle(&mut self) -> Result<(), StoreError> {
        self.take_over().await?;
        self.make_durable().await?;
        if self.is_dirty() { Err(StoreError::Full) } else { Ok(()) }
    }

    /// Puts the dump of another replica in the place of what is here.
    async fn take_over(&mut self) -> Result<(), StoreError> {
        if self.to_install.is_none() {
            return Ok(());
        }
        if self.rows.store.is_none() && !self.open_files().await? && self.rows.is_shut {
            return Err(StoreError::Full);
        }
        // The files have to be open: rows that they hold and the dump lacks are to be deleted, and
        // unread they could not be named.
        let gone = self.all_rows()?.into_iter().map(|(key, _)| (key, None)).collect();
        let Some(dump) = self.to_install.take() else { return Ok(()) };
        // Looked at again: entries may have been applied while the dump waited for room.
        if dump.position > self.applied {
            // First what goes, then what comes: a key that is in both stays.
            self.rows.put(gone);
            let new = dump.rows.into_iter().map(|(key, value)| (key, Some(value)));
            self.rows.put(new.collect());
            self.machine = M::load(&self.rows)?;
            self.applied = dump.position;
            // The log has not shown yet that it goes on where the dump ends.
            self.is_continued = false;
        }
        Ok(())
    }

    fn all_rows(&self) -> Result<Vec<Found>, StoreError> {
        self.rows.scan(&[], &[u8::MAX; KEY_BYTES_MAX], usize::MAX / 2, false)
    }
}
