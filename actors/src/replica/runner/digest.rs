//! Hashes what a replica holds at one position, for `services/tenants/compare.rs`.
//!
//! Rows change with the next entry, so they are hashed before it is applied: all of them, piece by piece,
//! in memory that is bounded. Other tenants go on between two pieces; this one waits. Events are only added
//! to, so that those up to the length at that position can be hashed later, while the replica goes on.
//!
//! What is hashed is what a snapshot sends: all rows by key, each with its lengths, then the length of the
//! events and the events. The position and the id of the log are not among the rows.

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::ReplicaRunner;
use super::scrub::{PIECE_BYTES, RowsFrom};
use crate::command::{Envelope, Outcome};
use crate::domain::ids::Position;
use crate::ports::{StateDigest, StoreError};
use crate::state::StateMachine;

/// What a replica held at a position: its rows are hashed, and its events up to a byte.
#[derive(Debug, Clone)]
pub struct DigestCursor {
    /// The position.
    pub position: Position,
    hash: Sha256,
    /// Bytes of events that are hashed.
    hashed: u64,
    /// Bytes of events that there were.
    total: u64,
}

impl DigestCursor {
    /// The digest, once all events are hashed.
    pub fn digest(&self) -> Option<StateDigest> {
        (self.hashed == self.total).then(|| StateDigest(self.hash.clone().finalize().into()))
    }
}

impl<M: StateMachine> ReplicaRunner<M> {
    /// Notes what the replica holds, if the entry that was just applied asks for it.
    ///
    /// # Errors
    /// When the files are damaged.
    pub(super) async fn note_if_asked(
        &mut self,
        position: Position,
        envelope: &Envelope,
        outcome: &Outcome,
    ) -> Result<(), StoreError> {
        if envelope.asks_for_digest() && *outcome == Outcome::Done {
            self.note(position).await?;
        }
        Ok(())
    }

    /// Returns what was noted at a position, or last where none is given.
    pub(super) async fn noted_at(
        &mut self,
        at: Option<Position>,
    ) -> Result<Option<DigestCursor>, StoreError> {
        let is_wanted = |noted: &DigestCursor| at.is_none_or(|at| at == noted.position);
        if let Some(noted) = self.noted.as_ref().filter(|noted| is_wanted(noted)) {
            return Ok(Some(noted.clone()));
        }
        // The actor that noted it has gone to sleep, or the replica was sent as it is at that position.
        // Nothing has been applied since.
        if let Some(at) = at.filter(|at| self.applied == Some(*at)) {
            self.note(at).await?;
        }
        Ok(self.noted.clone().filter(is_wanted))
    }

    async fn note(&mut self, position: Position) -> Result<(), StoreError> {
        self.noted = None;
        // What the state machine has not let go of yet belongs to this position, too.
        self.rows.put_events(&self.machine.take_events());
        self.rows.put(self.machine.take_final_rows());
        self.rows.put(self.machine.take_dirty_rows());
        let total = self.rows.events_total();
        match self.hash_rows().await {
            Ok(mut hash) => {
                hash.update(total.to_le_bytes());
                self.noted = Some(DigestCursor { position, hash, hashed: 0, total });
                Ok(())
            }
            Err(error) if error.lasting().is_some() => Err(error),
            // The disk is full, say: the replica goes on, and is not compared this time.
            Err(error) => {
                tracing::debug!(part = %self.part, %error, "cannot note what the replica holds");
                Ok(())
            }
        }
    }

    async fn hash_rows(&mut self) -> Result<Sha256, StoreError> {
        let mut hash = Sha256::new();
        let mut rows_from = RowsFrom::Beginning;
        loop {
            let began = Instant::now();
            rows_from = self.read_rows(rows_from, |key, value| {
                for bytes in [key, value] {
                    hash.update((bytes.len() as u64).to_le_bytes());
                    hash.update(bytes);
                }
            })?;
            if rows_from == RowsFrom::End {
                return Ok(hash);
            }
            // Half of a processor at most: all replicas do this at the same time.
            tokio::time::sleep(began.elapsed()).await;
        }
    }

    /// Hashes the next piece of the events that there were at the cursor's position.
    pub(super) fn hash_events(&self, mut cursor: DigestCursor) -> Result<DigestCursor, StoreError> {
        let rest = usize::try_from(cursor.total - cursor.hashed).unwrap_or(usize::MAX);
        let piece = self.rows.read_events(cursor.hashed, rest.min(PIECE_BYTES))?;
        cursor.hash.update(&piece);
        cursor.hashed += piece.len() as u64;
        Ok(cursor)
    }

    /// Makes the error about a replica that holds something else than two others.
    pub(super) fn differs(&self, at: Position) -> StoreError {
        StoreError::Damaged {
            file: format!("the state of {}", self.part),
            offset: 0,
            what: format!("it differs from that of two other replicas at {at}"),
        }
    }
}
