//! The index of a state machine: ordered rows in redb, and the state they are of.
//!
//! | table | key | value |
//! |---|---|---|
//! | `rows` | bytes | bytes |
//! | `meta` | `format` | version of the format, 4 bytes little endian |
//! | `meta` | `state` | term, index, length of the event log: 8 bytes each, little endian |
//! | `meta` | `log` | id of the log whose entries were applied, 16 bytes |
//!
//! Every value but that of `format` is followed by its checksum (`checksum`). redb looks at its own
//! checksums only when it repairs; these are looked at whenever a row is read. Format 1 had none:
//! its rows are given theirs when it is opened.
//!
//! Every commit is durable. It leaves one state, whole, with the position of the log that it is of.

use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use redb::{
    Builder, Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable as _,
    TableDefinition, WriteTransaction,
};
use shiioo_actors::domain::ids::Position;
use shiioo_actors::mutants::{self, Mutant};
use shiioo_actors::ports::{Dump, Row, StoreError};
use uuid::Uuid;

use super::backend::Backend;
use super::checksum::{CHECKSUM_BYTES, has_valid_checksum, with_checksum};
use crate::disk::{DiskFile, store_error};

/// Memory that redb may use for pages of one index, bytes. Thousands of tenants may be open.
const CACHE_BYTES: usize = 1 << 20;

/// Version of the tables.
const FORMAT: u32 = 2;
/// The version without checksums.
const FORMAT_WITHOUT_CHECKSUMS: u32 = 1;
/// Rows of format 1 that are in memory at once while they are given checksums.
const CHECKSUM_BATCH_ROWS: usize = 256;

const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const META_FORMAT: &str = "format";
const META_STATE: &str = "state";
const META_LOG: &str = "log";

/// The state whose rows an index holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub position: Position,
    /// Length of the event log in that state, bytes.
    pub events_len: u64,
}

/// A key and its value.
type Pair = (Vec<u8>, Vec<u8>);

/// An open index.
#[derive(Debug)]
pub(crate) struct RowIndex {
    path: String,
    database: Database,
    backend: Backend,
}

impl RowIndex {
    /// Makes an index in an empty file, durably.
    pub fn create(
        path: &str,
        file: Arc<dyn DiskFile>,
        log: Option<Uuid>,
    ) -> Result<Self, StoreError> {
        let index = Self::open_any(path, file)?;
        index.write(|transaction| {
            transaction.open_table(ROWS)?;
            let mut meta = transaction.open_table(META)?;
            meta.insert(META_FORMAT, &FORMAT.to_le_bytes()[..])?;
            if let Some(log) = log {
                meta.insert(META_LOG, &with_checksum(META_LOG.as_bytes(), log.as_bytes())[..])?;
            }
            Ok(())
        })?;
        Ok(index)
    }

    /// Opens an index, and gives the state it holds. Where `log` is given, the index must be made
    /// of the entries of that log.
    pub fn open(
        path: &str,
        file: Arc<dyn DiskFile>,
        log: Option<Uuid>,
    ) -> Result<(Self, Option<State>), StoreError> {
        let index = Self::open_any(path, file)?;
        let format = index.meta(META_FORMAT)?;
        match format.as_deref().map(<[u8; 4]>::try_from).map(|bytes| bytes.map(u32::from_le_bytes))
        {
            Some(Ok(FORMAT)) => {}
            Some(Ok(FORMAT_WITHOUT_CHECKSUMS)) => index.add_checksums(log)?,
            Some(Ok(format)) if format > FORMAT => {
                let what = format!("{path} has format {format}");
                return Err(StoreError::TooNew { what, known: FORMAT.into() });
            }
            _ => {
                return Err(index
                    .damaged("its format cannot be read; put the file back from a copy".into()));
            }
        }
        // An index without an owner is of a program that gave logs no id: the log itself says then,
        // by its report of files, whether it knows this one.
        let owner = index.verified_meta(META_LOG)?;
        if let (Some(owner), Some(log)) = (owner, log)
            && owner != log.as_bytes()
            && !mutants::is(Mutant::TrustMissingLog)
        {
            let what = format!(
                "it belongs to the log of another node, or to an earlier one of this node, and this \
                 node's log is {log}; put back the file that belongs to it"
            );
            return Err(index.damaged(what));
        }
        let state = match index.verified_meta(META_STATE)? {
            None => None,
            Some(bytes) => Some(decode_state(&bytes).ok_or_else(|| {
                index.damaged("its state cannot be read; put the file back from a copy".into())
            })?),
        };
        Ok((index, state))
    }

    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let get = || -> Result<_, redb::Error> {
            let table = self.database.begin_read()?.open_table(META)?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        };
        self.guarded(get)
    }

    fn verified_meta(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.meta(key)?;
        value.map(|value| self.verified(key.as_bytes(), value)).transpose()
    }

    /// Gives every row of an index of format 1 its checksum.
    ///
    /// All in one transaction, with the new format: a crash leaves the old index or the new one,
    /// never rows with and without checksums beside each other.
    fn add_checksums(&self, log: Option<Uuid>) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut rows = transaction.open_table(ROWS)?;
            let mut from: Option<Vec<u8>> = None;
            loop {
                let after = from.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                let some: Vec<Pair> = rows
                    .range::<&[u8]>((after, Bound::Unbounded))?
                    .take(CHECKSUM_BATCH_ROWS)
                    .map(|row| {
                        row.map(|(key, value)| (key.value().to_vec(), value.value().to_vec()))
                    })
                    .collect::<Result<_, _>>()?;
                for (key, value) in &some {
                    rows.insert(key.as_slice(), &with_checksum(key, value)[..])?;
                }
                match some.into_iter().next_back() {
                    Some((key, _)) => from = Some(key),
                    None => break,
                }
            }
            let mut meta = transaction.open_table(META)?;
            let state = meta.get(META_STATE)?.map(|state| state.value().to_vec());
            if let Some(state) = state {
                meta.insert(META_STATE, &with_checksum(META_STATE.as_bytes(), &state)[..])?;
            }
            if let Some(log) = log {
                meta.insert(META_LOG, &with_checksum(META_LOG.as_bytes(), log.as_bytes())[..])?;
            }
            meta.insert(META_FORMAT, &FORMAT.to_le_bytes()[..])?;
            Ok(())
        })
    }

    /// Gives the value of a row without its checksum, which must be right.
    fn verified(&self, key: &[u8], mut value: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        if !has_valid_checksum(key, &value) {
            let what = format!(
                "the checksum of row \"{}\" does not match; put the file back from a copy",
                key.escape_ascii()
            );
            return Err(self.damaged(what));
        }
        value.truncate(value.len() - CHECKSUM_BYTES);
        Ok(value)
    }

    fn verified_row(&self, (key, value): Pair) -> Result<Pair, StoreError> {
        let value = self.verified(&key, value)?;
        Ok((key, value))
    }

    fn open_any(path: &str, file: Arc<dyn DiskFile>) -> Result<Self, StoreError> {
        let backend = Backend::new(file);
        let database = guarded(path, &backend, || {
            let builder =
                Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(backend.clone());
            Ok(builder?)
        })?;
        Ok(Self { path: path.to_owned(), database, backend })
    }

    pub fn fence(&self) {
        self.backend.fence();
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let get = || -> Result<_, redb::Error> {
            let table = self.database.begin_read()?.open_table(ROWS)?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        };
        let value = self.guarded(get)?;
        value.map(|value| self.verified(key, value)).transpose()
    }

    pub fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        descending: bool,
    ) -> Result<Vec<Pair>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let scan = || -> Result<Vec<Pair>, redb::Error> {
            let table = self.database.begin_read()?.open_table(ROWS)?;
            let mut range = table.range::<&[u8]>((Bound::Included(from), Bound::Excluded(to)))?;
            let mut rows = Vec::new();
            while rows.len() < limit {
                let next = if descending { range.next_back() } else { range.next() };
                let Some(row) = next else { break };
                let (key, value) = row?;
                rows.push((key.value().to_vec(), value.value().to_vec()));
            }
            Ok(rows)
        };
        // Checksums are verified once the transaction is over, so that it is short.
        self.guarded(scan)?.into_iter().map(|row| self.verified_row(row)).collect()
    }

    /// Opens a view of the rows as they are durable now.
    pub fn view(&self) -> Result<ReadTransaction, StoreError> {
        self.guarded(|| Ok(self.database.begin_read()?))
    }

    /// Reads the rows of a view behind a key, until they cost `bytes`, about. Tells whether no other follow.
    pub fn scan_view(
        &self,
        view: &ReadTransaction,
        after: Option<&[u8]>,
        bytes: usize,
    ) -> Result<(Vec<Pair>, bool), StoreError> {
        let scan = || -> Result<(Vec<Pair>, bool), redb::Error> {
            let table = view.open_table(ROWS)?;
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            let (mut rows, mut read) = (Vec::new(), 0);
            for row in table.range::<&[u8]>((from, Bound::Unbounded))? {
                let (key, value) = row?;
                let pair = (key.value().to_vec(), value.value().to_vec());
                read += Dump::cost(&pair);
                rows.push(pair);
                if read >= bytes {
                    return Ok((rows, false));
                }
            }
            Ok((rows, true))
        };
        let (rows, is_end) = self.guarded(scan)?;
        let rows = rows.into_iter().map(|row| self.verified_row(row)).collect::<Result<_, _>>()?;
        Ok((rows, is_end))
    }

    /// Writes rows and the state they complete, durably.
    pub fn commit(&self, rows: &[Row], state: State) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(ROWS)?;
            for (key, value) in rows {
                match value {
                    Some(value) => {
                        drop(table.insert(key.as_slice(), &with_checksum(key, value)[..])?)
                    }
                    None => drop(table.remove(key.as_slice())?),
                }
            }
            let state = encode_state(state);
            transaction
                .open_table(META)?
                .insert(META_STATE, &with_checksum(META_STATE.as_bytes(), &state)[..])?;
            Ok(())
        })
    }

    fn write(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let write = || -> Result<(), redb::Error> {
            let mut transaction = self.database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            // Writes the allocator's state along, so that a kill later does not cost a walk of the
            // whole file at the next start.
            transaction.set_quick_repair(true);
            change(&transaction)?;
            Ok(transaction.commit()?)
        };
        self.guarded(write)
    }

    fn guarded<T>(&self, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, StoreError> {
        guarded(&self.path, &self.backend, work)
    }

    fn damaged(&self, what: String) -> StoreError {
        StoreError::Damaged { file: self.path.clone(), offset: 0, what }
    }
}

/// Has redb do something. It panics where pages are not as it wrote them: that is damage like any other, and
/// nothing of it may be written.
fn guarded<T>(
    path: &str,
    backend: &Backend,
    work: impl FnOnce() -> Result<T, redb::Error>,
) -> Result<T, StoreError> {
    // What redb leaves in memory is not used any more: the store is broken by the error.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| database_error(path, error)),
        Err(_) => {
            backend.fence();
            let what = "its pages are not as they were written; put the file back from a copy";
            Err(StoreError::Damaged { file: path.to_owned(), offset: 0, what: what.to_owned() })
        }
    }
}

fn database_error(path: &str, error: redb::Error) -> StoreError {
    match error {
        // What a file that is cut, or is none of redb's, looks like.
        redb::Error::Io(error)
            if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
            ) =>
        {
            StoreError::Damaged { file: path.to_owned(), offset: 0, what: error.to_string() }
        }
        redb::Error::Io(error) => store_error(path, error),
        error @ (redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::RepairAborted
        | redb::Error::TableDoesNotExist(_)) => {
            StoreError::Damaged { file: path.to_owned(), offset: 0, what: error.to_string() }
        }
        error => store_error(path, io::Error::other(error)),
    }
}

fn encode_state(state: State) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&state.position.term.to_le_bytes());
    bytes[8..16].copy_from_slice(&state.position.index.to_le_bytes());
    bytes[16..].copy_from_slice(&state.events_len.to_le_bytes());
    bytes
}

fn decode_state(bytes: &[u8]) -> Option<State> {
    let word = |at: usize| {
        let word = bytes.get(at..at + 8)?;
        Some(u64::from_le_bytes(word.try_into().ok()?))
    };
    (bytes.len() == 24).then_some(())?;
    Some(State { position: Position { term: word(0)?, index: word(8)? }, events_len: word(16)? })
}

#[cfg(test)]
#[path = "row_index_tests.rs"]
mod tests;
