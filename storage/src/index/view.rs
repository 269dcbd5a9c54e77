//! Views of a replica's files: what was durable when each was opened, read while the store goes on.
//!
//! Rows are seen by a transaction of redb, which keeps the pages that it needs. Events up to a length do not change.
//! Both need the files that the store has open, so the store takes its views back when it closes them: whoever removes
//! the files, or opens them again, waits for no reader.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use redb::ReadTransaction;
use shiioo_actors::ports::{BoxFuture, Found, StoreError, View};

use super::file_store::no_events;
use super::files::Files;
use crate::disk::store_error;
use crate::executor::Executor;

/// What a view reads. Dropped in this order: redb is closed with the last user of the files.
#[derive(Debug)]
struct Viewed {
    rows: ReadTransaction,
    files: Arc<Files>,
}

/// Shared by a view and its store: either may end it.
type Shared = Arc<Mutex<Option<Viewed>>>;

/// The views of one store.
#[derive(Debug, Default)]
pub(crate) struct Views(Vec<Shared>);

impl Views {
    pub fn open(
        &mut self,
        files: Arc<Files>,
        rows: ReadTransaction,
        executor: Executor,
    ) -> FileView {
        self.0.retain(|view| view.lock().is_some());
        let shared = Arc::new(Mutex::new(Some(Viewed { rows, files })));
        self.0.push(Arc::clone(&shared));
        FileView { shared, executor, after: None }
    }

    pub fn are_open(&self) -> bool {
        self.0.iter().any(|view| view.lock().is_some())
    }

    /// Ends all of them. Waits for a read that is under way.
    pub fn take_back(&mut self) {
        for view in self.0.drain(..) {
            view.lock().take();
        }
    }
}

/// A view.
#[derive(Debug)]
pub(crate) struct FileView {
    shared: Shared,
    executor: Executor,
    /// The key of the last row that was read.
    after: Option<Vec<u8>>,
}

impl FileView {
    /// Reads, where that may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Viewed) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        let read = move || {
            let viewed = shared.lock();
            let closed = || io::Error::other("they were closed meanwhile");
            let viewed =
                viewed.as_ref().ok_or_else(|| store_error("read a replica's files", closed()))?;
            viewed.files.check()?;
            read(viewed)
        };
        self.executor.run(read).await
    }
}

impl View for FileView {
    fn rows(&mut self, bytes: usize) -> BoxFuture<'_, Result<(Vec<Found>, bool), StoreError>> {
        Box::pin(async move {
            let after = self.after.clone();
            let read = move |viewed: &Viewed| {
                viewed.files.index.scan_view(&viewed.rows, after.as_deref(), bytes)
            };
            let (rows, is_end) = self.read(read).await?;
            if let Some((last, _)) = rows.last() {
                self.after = Some(last.clone());
            }
            Ok((rows, is_end))
        })
    }

    fn events(&mut self, offset: u64, len: usize) -> BoxFuture<'_, Result<Vec<u8>, StoreError>> {
        Box::pin(self.read(move |Viewed { files, .. }| {
            let events = files.events.as_ref().ok_or_else(|| no_events(files.paths.part))?;
            let mut bytes = vec![0; len];
            let read = events.read_at(offset, &mut bytes);
            let what = || format!("read {} at {offset}", files.paths.events);
            read.map(|()| bytes).map_err(|error| store_error(what(), error))
        }))
    }
}

impl Drop for FileView {
    fn drop(&mut self) {
        // Under the lock: a store that closes its files at this moment waits until redb has let go of the view.
        self.shared.lock().take();
    }
}
