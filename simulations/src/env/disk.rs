//! The disk of one process: storage's simulated disk, with every change in the trace, and an end
//! to the process's reach when it is killed.
//!
//! A power cut is the disk's own affair. A kill without one is not: what was written stays, but
//! the destructors that run while a host is torn down, which no killed process would run, must
//! write nothing more.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use shiioo_storage::disk::{DirEntry, Disk, DiskFile, DiskLock, OpenMode};

use crate::env::trace;
use crate::plan::LyingDisk;

/// What the simulated disk says to a life that has ended in the middle of an operation.
const FENCED: io::ErrorKind = io::ErrorKind::NotConnected;

/// What the disk refused, as the program saw it.
#[derive(Debug, Default)]
pub struct DiskFaultsSeen {
    full: AtomicU64,
    failed_syncs: AtomicU64,
}

impl DiskFaultsSeen {
    /// Writes that found no room.
    pub fn full(&self) -> u64 {
        self.full.load(Ordering::Relaxed)
    }

    /// Syncs that failed.
    pub fn failed_syncs(&self) -> u64 {
        self.failed_syncs.load(Ordering::Relaxed)
    }
}

/// One life of a program, as far as the disk is concerned.
#[derive(Debug, Clone)]
pub struct Process {
    host: Arc<str>,
    killed: Arc<AtomicBool>,
    seen: Arc<DiskFaultsSeen>,
    lies: Option<LyingDisk>,
}

impl Process {
    /// A new life of the program on `host`.
    pub fn new(host: &str, seen: Arc<DiskFaultsSeen>, lies: Option<LyingDisk>) -> Self {
        Self { host: host.into(), killed: Arc::default(), seen, lies }
    }

    /// From now on nothing of this life reaches the disk.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Relaxed);
    }

    fn alive(&self) -> io::Result<()> {
        if self.killed.load(Ordering::Relaxed) {
            return Err(io::Error::other("the process was killed"));
        }
        Ok(())
    }

    /// Performs a change and writes it down, with its error where there is one.
    fn change<T>(
        &self,
        what: fmt::Arguments<'_>,
        payload: &[u8],
        change: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        self.alive()?;
        let done = change();
        match &done {
            Ok(_) => trace::event(&self.host, "disk", what, payload),
            Err(error) => {
                if error.kind() == io::ErrorKind::StorageFull {
                    self.seen.full.fetch_add(1, Ordering::Relaxed);
                }
                trace::event(&self.host, "disk", format_args!("{what}: {error}"), payload);
                self.notice_end(error);
            }
        }
        done
    }

    /// Reads; only what goes wrong is written down.
    fn read<T>(
        &self,
        what: fmt::Arguments<'_>,
        read: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        self.alive()?;
        read().inspect_err(|error| {
            trace::event(&self.host, "disk", format_args!("{what}: {error}"), &[]);
            self.notice_end(error);
        })
    }

    /// Whoever has ended in an operation does nothing more that is told: in which order its parts
    /// fall is nobody's business, and depends on numbers that ractor gives for the whole process.
    fn notice_end(&self, error: &io::Error) {
        if error.kind() == FENCED {
            self.kill();
        }
    }

    fn sync(
        &self,
        what: fmt::Arguments<'_>,
        missing: bool,
        sync: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if missing {
            return self.alive();
        }
        self.alive()?;
        let done = self.change(what, &[], sync);
        if done.as_ref().is_err_and(|error| error.kind() != FENCED) {
            self.seen.failed_syncs.fetch_add(1, Ordering::Relaxed);
        }
        done
    }
}

/// The disk as one life of a program sees it.
#[derive(Debug)]
pub struct TracedDisk {
    disk: Arc<dyn Disk>,
    process: Process,
}

impl TracedDisk {
    /// Puts a mounted disk under a process.
    pub fn new(disk: Arc<dyn Disk>, process: Process) -> Self {
        Self { disk, process }
    }
}

impl Disk for TracedDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let open = || self.disk.open(path, mode);
        let file = self.process.change(format_args!("open {path} {mode:?}"), &[], open)?;
        Ok(Arc::new(TracedFile { file, path: path.into(), process: self.process.clone() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let rename = || self.disk.rename(from, to);
        self.process.change(format_args!("rename {from} {to}"), &[], rename)
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        let remove = || self.disk.remove_file(path);
        self.process.change(format_args!("remove {path}"), &[], remove)
    }

    fn remove_dir_all(&self, path: &str) -> io::Result<()> {
        let remove = || self.disk.remove_dir_all(path);
        self.process.change(format_args!("remove all of {path}"), &[], remove)
    }

    fn create_dir_all(&self, path: &str) -> io::Result<()> {
        let create = || self.disk.create_dir_all(path);
        self.process.change(format_args!("create directory {path}"), &[], create)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let missing =
            matches!(self.process.lies, Some(LyingDisk::AllSyncs | LyingDisk::DirectorySyncs));
        let sync = || self.disk.sync_dir(path);
        self.process.sync(format_args!("sync directory {path}/"), missing, sync)
    }

    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        self.process.read(format_args!("list {path}"), || self.disk.list(path))
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        self.process.read(format_args!("look for {path}"), || self.disk.exists(path))
    }

    fn free(&self) -> io::Result<u64> {
        self.process.read(format_args!("look for room"), || self.disk.free())
    }

    fn lock(&self, path: &str) -> io::Result<DiskLock> {
        self.process.change(format_args!("lock {path}"), &[], || self.disk.lock(path))
    }
}

#[derive(Debug)]
struct TracedFile {
    file: Arc<dyn DiskFile>,
    path: Arc<str>,
    process: Process,
}

impl DiskFile for TracedFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let what = format_args!("read {} at {offset}", self.path);
        self.process.read(what, || self.file.read_at(offset, buffer))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let what = format_args!("write {} at {offset}", self.path);
        self.process.change(what, bytes, || self.file.write_at(offset, bytes))
    }

    fn len(&self) -> io::Result<u64> {
        self.process.read(format_args!("length of {}", self.path), || self.file.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let what = format_args!("set length of {} to {len}", self.path);
        self.process.change(what, &[], || self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let missing = match self.process.lies {
            Some(LyingDisk::AllSyncs) => true,
            Some(LyingDisk::LogSyncs) => self.path.starts_with("log/"),
            Some(LyingDisk::DirectorySyncs) | None => false,
        };
        self.process.sync(format_args!("sync {}", self.path), missing, || self.file.sync_data())
    }
}
