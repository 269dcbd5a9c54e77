//! The file seam: everything in the program that reads or writes a file goes through a [`Disk`].
//!
//! In production it is the operating system's ([`RealDisk`]). Under test it is `SimDisk`, a disk
//! in memory that loses power, so that the very code that ships is run through every crash there
//! is. The traits are therefore as narrow as the program's use of files, and say only what POSIX
//! says.
//!
//! # What a disk promises
//!
//! | after | a power cut leaves |
//! |---|---|
//! | `write_at` or `set_len` | any of it: all, nothing, or torn at sectors |
//! | `sync_data` | bytes and length, if the *name* is durable |
//! | creation, rename, removal | any prefix of the changes to a directory |
//! | `sync_dir` of the directory | the names in it |
//! | a failed `sync_data` | unknown, and a second sync would lie: never sync that file again |
//!
//! So every durable step has the same order: bytes, sync of the file, name, sync of the directory.
//! [`write_durably`] is that order for a small file. The longer ones say at their place why they
//! are in the order they are in: `log::segment::begin`, `log::writer`, `index::files`,
//! `index::directory`.
//!
//! # What `SimDisk` can do
//!
//! Cut power, or kill the program, in the middle of any chosen operation; let each unsynced write
//! survive, vanish or tear, by its seed; fail writes, reads or syncs; run out of room or of
//! descriptors; flip bits; lie about syncs, so that a test can show that it would notice. It cannot
//! be slow: calls are synchronous and simulated time does not pass in them.
//! [`Executor::Paced`](crate::Executor::Paced) waits before them instead.
//!
//! # Invariants
//!
//! - Paths are relative to the data directory, written with `/`, and never leave it.
//! - Nothing is durable before it is synced: bytes and lengths with [`DiskFile::sync_data`], names
//!   with [`Disk::sync_dir`] of the directory that holds them.
//! - All calls block. A caller that must not block runs them through an
//!   [`Executor`](crate::Executor).
//!
//! # What this seam does not do
//!
//! It has no streams, no memory maps and no asynchronous I/O: files are written whole or appended
//! to, by threads that may block. It does not retry: lacks that pass by themselves are named in
//! `shortage`, and their callers wait.

mod piecemeal;
mod preview;
mod real;
mod room;
mod shortage;
#[cfg(any(test, feature = "sim"))]
mod sim;
mod small_file;

use std::any::Any;
use std::fmt;
use std::io;
use std::sync::Arc;

use shiioo_actors::ports::StoreError;

pub(crate) use piecemeal::PiecemealFile;
pub use preview::PreviewDisk;
pub use real::RealDisk;
pub(crate) use room::{LOG_ROOM_BYTES_MIN, room_for_copies};
pub(crate) use shortage::Shortage;
#[cfg(any(test, feature = "sim"))]
pub use sim::{DiskCopy, SimDisk};
pub use small_file::{SMALL_FILE_BYTES_MAX, read_small, write_durably};

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// The file must be there.
    Existing,
    /// The file must not be there, and is made empty.
    CreateNew,
    /// The file is made empty where it is not there.
    OpenOrCreate,
}

/// A directory tree below one root.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// When the system says no; `NotFound` and `AlreadyExists` as the mode has it.
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file or directory, replacing a file that is there.
    ///
    /// # Errors
    /// When the system says no.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// When the system says no.
    fn remove_file(&self, path: &str) -> io::Result<()>;

    /// Removes a directory and what is in it.
    ///
    /// # Errors
    /// When the system says no.
    fn remove_dir_all(&self, path: &str) -> io::Result<()>;

    /// Makes a directory and the ones above it where they are missing.
    ///
    /// # Errors
    /// When the system says no.
    fn create_dir_all(&self, path: &str) -> io::Result<()>;

    /// Makes the names in a directory durable; `""` is the data directory itself.
    ///
    /// # Errors
    /// When the system says no.
    fn sync_dir(&self, path: &str) -> io::Result<()>;

    /// Lists a directory by name.
    ///
    /// # Errors
    /// When the system says no; `NotFound` when there is none.
    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>>;

    /// Tells whether there is a file or a directory.
    ///
    /// # Errors
    /// When the system does not say. That is not a no: a file that is taken for missing is made
    /// anew.
    fn exists(&self, path: &str) -> io::Result<bool>;

    /// Tells how many bytes the whole disk holds. One without a bound says more than anybody has.
    ///
    /// # Errors
    /// When the system does not say.
    fn size(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    /// Tells how many bytes can still be written, as far as the system lets this process. One without a bound says
    /// more than anybody has.
    ///
    /// # Errors
    /// When the system does not say.
    fn free(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    /// Takes an exclusive lock on a file, which is made where it is not there. The lock lasts until
    /// the returned value is dropped, and at most as long as the process.
    ///
    /// # Errors
    /// `WouldBlock` when another holds it, else what the system says.
    fn lock(&self, path: &str) -> io::Result<DiskLock>;
}

/// An open file.
// `len` answers with an error: an `is_empty` beside it would only hide that.
#[allow(clippy::len_without_is_empty)]
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before, else what the system says.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`, and makes the file longer where need be.
    ///
    /// # Errors
    /// When the system says no; some of it may have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Gives the length in bytes.
    ///
    /// # Errors
    /// When the system says no.
    fn len(&self) -> io::Result<u64>;

    /// Cuts the file, or fills it up with zeros.
    ///
    /// # Errors
    /// When the system says no.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes bytes and length durable.
    ///
    /// # Errors
    /// When the system says no. Then the file must be closed and never be synced again: the kernel
    /// may have dropped what it could not write, and would report success.
    fn sync_data(&self) -> io::Result<()>;
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// The name, without the directory.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Length of a file, bytes; 0 for a directory.
    pub len: u64,
}

/// An exclusive lock, released when dropped.
pub struct DiskLock {
    _held: Box<dyn Any + Send + Sync>,
}

impl DiskLock {
    /// Wraps the value that holds the lock until it is dropped.
    pub fn new(held: impl Any + Send + Sync) -> Self {
        Self { _held: Box::new(held) }
    }
}

/// Makes a directory and its parents, all durably. Parents are synced also when the directory was
/// there already: an earlier process may have made it and died before the sync.
///
/// # Errors
/// When the system says no.
pub(crate) fn create_dir_durably(disk: &dyn Disk, path: &str) -> io::Result<()> {
    disk.create_dir_all(path)?;
    let mut dir = path;
    while !dir.is_empty() {
        dir = parent(dir);
        disk.sync_dir(dir)?;
    }
    Ok(())
}

/// Gives the directory that holds a path; `""` for one at the top.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// Turns an operating system's error into what the actors are told. `what` says what was done to
/// which file.
pub fn store_error(what: impl Into<String>, error: io::Error) -> StoreError {
    if Shortage::of(&error) == Some(Shortage::Room) {
        StoreError::Full
    } else {
        StoreError::Io { what: what.into(), source: Arc::new(error) }
    }
}
