//! What one replica sends another, part by part: neither end holds more than a few parts of it.

use std::fmt;

use futures_util::stream::BoxStream;

use super::{BoxFuture, Found, StoreError};
use crate::domain::ids::Position;

/// What a replica holds and another lacks, as it was at one position. The replica goes on while it is read.
pub struct Dump {
    /// The last entry in it.
    pub position: Position,
    /// Where its events begin, in all events of the replica.
    pub events_from: u64,
    /// Bytes that it takes on the disk of whoever takes it over, until it is in its place, about.
    pub bytes: u64,
    /// All its rows, by key, then its events: at least one part, which may be empty.
    pub parts: BoxStream<'static, Result<DumpPart, StoreError>>,
}

impl Dump {
    /// Bytes of memory that a row is taken to cost beside its key and value.
    const ROW_BYTES: usize = 64;

    /// Counts what a row costs, bytes.
    pub const fn cost((key, value): &Found) -> usize {
        Self::cost_of(key.as_slice(), value.len())
    }

    /// Counts what a row with a value of so many bytes costs, bytes.
    pub const fn cost_of(key: &[u8], value_bytes: usize) -> usize {
        key.len() + value_bytes + Self::ROW_BYTES
    }
}

impl fmt::Debug for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dump").field("position", &self.position).finish_non_exhaustive()
    }
}

/// Some of a dump.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DumpPart {
    /// Rows, by key.
    pub rows: Vec<Found>,
    /// Events.
    pub events: Vec<u8>,
}

impl DumpPart {
    /// Counts what the part costs in memory, bytes.
    pub fn cost(&self) -> usize {
        self.rows.iter().map(Dump::cost).sum::<usize>() + self.events.len()
    }
}

/// Reads the files of a replica as they were when the view was opened, whatever has been written since. Fails once the
/// replica has closed its files.
pub trait View: Send {
    /// Reads the next rows, by key, until they cost `bytes`, about. Tells whether no other follow.
    fn rows(&mut self, bytes: usize) -> BoxFuture<'_, Result<(Vec<Found>, bool), StoreError>>;

    /// Reads from the event log.
    fn events(&mut self, offset: u64, len: usize) -> BoxFuture<'_, Result<Vec<u8>, StoreError>>;
}

/// Files that are written from another replica's dump, beside those of the replica that they are for. Removed when
/// they are dropped.
pub trait Staging: Send + fmt::Debug {
    /// Adds the next part of the dump.
    fn put(&mut self, part: DumpPart) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Makes all that was put durable, as the state at a position. Nothing can be added afterwards.
    fn seal(&mut self, position: Position) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Bytes of events that were put.
    fn events_len(&self) -> u64;

    /// Puts the sealed files in the place of the replica's, which must be closed. Returns once that is durable. After an
    /// error, or a crash, the place holds what it held before, or the new files; where it was to be
    /// [`Place::Cleared`], perhaps nothing.
    fn install(self: Box<Self>, place: Place) -> BoxFuture<'static, Result<(), StoreError>>;
}

/// What is where staged files are to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The replica's files, which are whole and hold so many bytes of events. The staged events go on from there, or
    /// from before.
    Whole {
        /// Bytes of events.
        events: u64,
    },
    /// Nothing, or damaged files, which are removed first. The control plane's are moved aside.
    Cleared,
}

/// All of a dump in sealed files, which wait for their place.
#[derive(Debug)]
pub struct Staged {
    /// The last entry in it.
    pub position: Position,
    /// Where its events begin, in all events of the replica.
    pub events_from: u64,
    /// The files.
    pub files: Box<dyn Staging>,
}
