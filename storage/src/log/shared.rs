//! What the writer, the readers and those who report to the log have in common.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use shiioo_actors::domain::ids::{GroupId, Position, StateMachineId};
use tokio::sync::watch;

use super::entry_index::EntryIndex;
use super::record::LowWaterMark;
use crate::disk::Shortage;

/// The state in memory that [`super::Log`] and its writer share.
///
/// Locks here are held for a look or an insertion, never across a disk operation or an `await`, and
/// never two at a time.
pub(crate) struct Shared {
    pub index: Mutex<EntryIndex>,
    /// Low-water marks that are not in the log yet.
    pub low_water_marks: Mutex<BTreeMap<GroupId, LowWaterMark>>,
    /// Positions up to which files are durable, as far as they are not in the log yet.
    pub files: Mutex<BTreeMap<StateMachineId, Position>>,
    /// Number of the segment that is written; changes when another is begun.
    pub rolled: watch::Sender<u32>,
    full: AtomicBool,
    /// Whether the reserve has something for commands that make room.
    serves_what_makes_room: AtomicBool,
    /// Whether a batch waits that found no room in the reserve either. Everything behind it waits as well.
    blocked: AtomicBool,
    /// Whether the next segment waits for a descriptor.
    exhausted: AtomicBool,
    /// Whether a batch that finds no room fails instead of waiting.
    closing: AtomicBool,
    pub failed: watch::Sender<Option<String>>,
}

impl Shared {
    pub fn new(index: EntryIndex, is_full: bool) -> Self {
        Self {
            index: Mutex::new(index),
            low_water_marks: Mutex::default(),
            files: Mutex::default(),
            rolled: watch::Sender::new(0),
            full: AtomicBool::new(is_full),
            serves_what_makes_room: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            exhausted: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            failed: watch::Sender::new(None),
        }
    }

    /// Notes that the log is dead. The first reason stays: later ones are its consequences.
    pub fn fail(&self, why: String) {
        tracing::error!(%why, "the log is dead: nothing more will be written");
        self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            failed.get_or_insert(why);
            first
        });
    }

    /// Gives the error of a job that is not carried out any more.
    pub fn error(&self) -> io::Error {
        match &*self.failed.borrow() {
            Some(why) => io::Error::other(why.clone()),
            None => io::Error::other("the log is closed"),
        }
    }

    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Tells whether a command that makes room is written, though the disk is full.
    pub fn takes_what_makes_room(&self) -> bool {
        self.serves_what_makes_room.load(Ordering::Acquire) && !self.blocked.load(Ordering::Acquire)
    }

    /// Notes whether the reserve has something for commands that make room.
    pub fn set_serves_what_makes_room(&self, serves: bool) {
        self.serves_what_makes_room.store(serves, Ordering::Release);
    }

    /// Notes whether a batch waits for room.
    pub fn set_blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Ordering::Release);
    }

    pub fn set_full(&self, full: bool) {
        if self.full.swap(full, Ordering::AcqRel) != full {
            if full {
                tracing::error!("the disk is full: nothing is written until there is room");
            } else {
                tracing::info!("there is room on the disk again");
            }
        }
    }

    /// Notes what the batch that waits is short of.
    pub fn set_short_of(&self, shortage: Shortage) {
        match shortage {
            Shortage::Room => self.set_full(true),
            Shortage::Descriptors => self.set_exhausted(true),
        }
    }

    pub fn set_exhausted(&self, exhausted: bool) {
        if self.exhausted.swap(exhausted, Ordering::AcqRel) != exhausted {
            if exhausted {
                tracing::error!("no file descriptor is left: nothing is written until one is");
            } else {
                tracing::info!("there are file descriptors again");
            }
        }
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub fn set_closing(&self) {
        self.closing.store(true, Ordering::Release);
    }
}
