//! The files of replicas: an index of ordered rows and, for tenants, an event log.

use std::sync::Arc;

use super::descriptors::is_exhausted;
use super::{BoxFuture, Staging, View};
use crate::domain::ids::{Position, StateMachineId, TenantId};

/// The files of replicas.
pub trait Stores: Send + Sync + 'static {
    /// Opens a replica's files, making them where there are none. Recovers what a crash left: the
    /// events are cut to the length that the index recorded.
    fn open(&self, part: StateMachineId) -> BoxFuture<'_, Result<Box<dyn Store>, StoreError>>;

    /// Whether the replica has files. An error is not a no.
    fn exists(&self, part: StateMachineId) -> Result<bool, StoreError>;

    /// Removes a tenant's files. Returns once they are gone durably.
    fn remove(&self, tenant: TenantId) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Begins files beside the replica's, for what another replica sends: see
    /// [`ApplySink::stage`](super::ApplySink::stage). Removes what a crash left of others.
    fn stage(
        &self,
        part: StateMachineId,
        events_from: u64,
    ) -> BoxFuture<'_, Result<Box<dyn Staging>, StoreError>>;

    /// The tenants that have files.
    fn tenants(&self) -> Result<Vec<TenantId>, StoreError>;

    /// The tenants that have files and are not known to be idle ([`Store::set_idle`]).
    fn tenants_with_work(&self) -> BoxFuture<'_, Result<Vec<TenantId>, StoreError>>;
}

/// A row to write (`Some`) or delete (`None`), by key.
pub type Row = (Vec<u8>, Option<Vec<u8>>);

/// A row that was found: key and value.
pub type Found = (Vec<u8>, Vec<u8>);

/// The open files of one replica: an index of ordered rows and, for tenants, an event log.
///
/// Nothing here is durable before [`Store::make_durable`] returns; the replicated log is.
pub trait Store: Send {
    /// The position whose state the index holds; `None` when it is new.
    fn position(&self) -> Option<Position>;

    /// The value of a key.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Up to `limit` rows with `from <= key < to`, ascending, or descending from the end.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        descending: bool,
    ) -> Result<Vec<Found>, StoreError>;

    /// Appends to the event log.
    ///
    /// # Errors
    /// When the file cannot be written.
    fn append_events(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Length of the event log, bytes.
    fn events_len(&self) -> u64;

    /// Reads from the event log.
    ///
    /// # Errors
    /// When the file cannot be read or is too short.
    fn read_events(&self, offset: u64, len: usize) -> Result<Vec<u8>, StoreError>;

    /// Writes rows and the position whose state they complete, and makes everything durable: first the
    /// event log, then the index.
    ///
    /// # Errors
    /// When a file cannot be written.
    fn make_durable(
        &mut self,
        rows: Vec<Row>,
        position: Position,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Opens a view of what is durable now. It is taken back when the files are closed.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn view(&mut self) -> Result<Box<dyn View>, StoreError>;

    /// Whether somebody reads a view.
    fn is_viewed(&self) -> bool {
        false
    }

    /// Why every further call fails, once one has.
    fn failure(&self) -> Option<StoreError> {
        None
    }

    /// Sets what is called when other replicas need the descriptors of these files. Until it is set
    /// nobody asks for them.
    fn on_wanted(&mut self, _ask: Box<dyn Fn() + Send + Sync>) {}

    /// Whether the files are marked as those of a replica without work ([`Store::set_idle`]).
    fn is_idle(&self) -> bool {
        false
    }

    /// Marks the files as those of a replica without work, which a new leader need not start, or
    /// takes the mark away. Taken away it is durably when this returns; set it may be lost again.
    fn set_idle(&mut self, _is_idle: bool) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    /// Bytes and files, as the file system has them.
    ///
    /// # Errors
    /// When the directory cannot be read.
    fn stats(&self) -> Result<StoreStats, StoreError>;
}

/// Sizes of a replica's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Files.
    pub file_count: u64,
    /// Bytes of `blobs/`.
    pub blobs_bytes: u64,
    /// Bytes of `events.jsonl`.
    pub events_bytes: u64,
    /// Bytes of `index.redb`.
    pub index_bytes: u64,
}

/// Files that cannot be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk has no room.
    #[error("the disk is full")]
    Full,
    /// The operating system says no.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with the file's name.
        what: String,
        /// What the system said.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The files hold what no crash of ours can have left.
    #[error("{file} is damaged at byte {offset}: {what}")]
    Damaged {
        /// Which file, relative to the data directory.
        file: String,
        /// Where.
        offset: u64,
        /// What is wrong and what is lost.
        what: String,
    },
    /// A later version of the program wrote it.
    #[error(
        "{what}, and this version of shiioo knows up to {known}: start the version that wrote it, \
         or a newer one"
    )]
    TooNew {
        /// What is of which version.
        what: String,
        /// The version that this program knows.
        known: u64,
    },
}

impl StoreError {
    /// What clients are told of files that will not be right again by themselves: nothing of where
    /// they are. `None` for a failure that may pass.
    pub fn lasting(&self) -> Option<String> {
        match self {
            Self::Full | Self::Io { .. } => None,
            Self::Damaged { file, what, .. } => {
                let name = file.rsplit('/').next().unwrap_or_default();
                Some(format!("its data is damaged ({name}: {what})"))
            }
            Self::TooNew { .. } => {
                Some("its data was written by a newer version of shiioo".to_owned())
            }
        }
    }
}

impl StoreError {
    /// Whether only a lack of file descriptors is in the way: it passes, and the files are well.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_exhausted(source))
    }
}
