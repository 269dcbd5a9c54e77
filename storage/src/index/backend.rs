//! Lets redb use a file of the disk seam.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;

use crate::disk::{DiskFile, PiecemealFile};

/// The file of an index, until it is fenced.
#[derive(Debug, Clone)]
pub(crate) struct Backend {
    file: Arc<dyn DiskFile>,
    is_fenced: Arc<AtomicBool>,
}

impl Backend {
    pub fn new(file: Arc<dyn DiskFile>) -> Self {
        // A commit may be long, and the log's syncs do not wait for all of it.
        let file = Arc::new(PiecemealFile::over(file));
        Self { file, is_fenced: Arc::default() }
    }

    /// Lets nothing more reach the file. redb writes when it is closed, and must not once its file,
    /// or the events beside it, are not known to be what it takes them for.
    pub fn fence(&self) {
        self.is_fenced.store(true, Ordering::Release);
    }

    fn file(&self) -> io::Result<&dyn DiskFile> {
        if self.is_fenced.load(Ordering::Acquire) {
            Err(io::Error::other("the index is fenced"))
        } else {
            Ok(self.file.as_ref())
        }
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file()?.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file()?.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file()?.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file()?.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file()?.write_at(offset, data)
    }
}
