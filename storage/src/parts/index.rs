//! The index of a part: ordered rows in redb, and the state they are of.
//!
//! | table | key | value |
//! |---|---|---|
//! | `rows` | bytes | bytes |
//! | `meta` | `format` | version of the format, 4 bytes little endian |
//! | `meta` | `state` | term, index, length of the event log: 8 bytes each, little endian |
//! | `meta` | `log` | id of the log whose entries the part applied, 16 bytes |
//!
//! Every value but that of `format` is followed by 4 bytes, little endian: the CRC-32 of the length of
//! its key, its key, and itself. redb looks at its own checksums only when it repairs; these are
//! looked at whenever a row is read. Format 1 had none: its rows are given theirs when it is opened.
//!
//! Measured with redb 4.6: 40,000 commits in a row without a durable one (10 rows of 200 bytes each,
//! over 1,000 keys) leave the file at the 548 KiB that it had after the first, and cost 5 KiB of
//! memory for every 125 of them, given back by the next durable commit; 400 commits of 2,000 rows
//! leave it at 17 MiB. So pages are used again, and durable commits need not be frequent for redb's
//! sake. They cost about 0.7 ms against 0.1 ms (unoptimised), and after 40,000 others 6 ms.

use std::io;
use std::ops::Bound;
use std::sync::Arc;

use redb::{
    Builder, Database, Durability, ReadableDatabase, ReadableTable as _, TableDefinition,
    WriteTransaction,
};
use shiioo_actors::domain::ids::Position;
use shiioo_actors::mutants::{self, Mutant};
use shiioo_actors::ports::{Row, StoreError};
use uuid::Uuid;

use super::backend::Backend;
use crate::disk::{DiskFile, store_error};

/// Memory that redb may use for pages of one index, bytes.
const CACHE_BYTES: usize = 1 << 20;

/// Version of the tables.
const FORMAT: u32 = 2;
/// The version without checksums.
const FORMAT_BARE: u32 = 1;
/// Rows that are given their checksums at once.
const SEALED_AT_ONCE: usize = 256;
/// Bytes of a checksum.
const SEAL_BYTES: usize = 4;

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
pub(crate) struct PartIndex {
    path: String,
    database: Database,
    backend: Backend,
}

impl PartIndex {
    /// Makes an index in an empty file, durably.
    pub fn create(
        path: &str,
        file: Arc<dyn DiskFile>,
        log: Option<Uuid>,
    ) -> Result<Self, StoreError> {
        let index = Self::open_any(path, file)?;
        index.write(Durability::Immediate, |transaction| {
            transaction.open_table(ROWS)?;
            let mut meta = transaction.open_table(META)?;
            meta.insert(META_FORMAT, &FORMAT.to_le_bytes()[..])?;
            if let Some(log) = log {
                meta.insert(META_LOG, &sealed(META_LOG.as_bytes(), log.as_bytes())[..])?;
            }
            Ok(())
        })?;
        Ok(index)
    }

    /// Opens an index, and gives the state it holds. Where `log` is given, its entries must be what
    /// the part applied.
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
            Some(Ok(FORMAT_BARE)) => index.seal_all(log)?,
            Some(Ok(format)) if format > FORMAT => {
                let what = format!("{path} has format {format}");
                return Err(StoreError::TooNew { what, known: FORMAT.into() });
            }
            _ => return Err(index.damaged("its format is not known".into())),
        }
        let owner = index.meta_unsealed(META_LOG)?;
        if let (Some(owner), Some(log)) = (owner, log)
            && owner != log.as_bytes()
            && !mutants::is(Mutant::TrustMissingLog)
        {
            let what = "it belongs to the log of another node, or of another life of this one";
            return Err(index.damaged(what.into()));
        }
        let state = match index.meta_unsealed(META_STATE)? {
            None => None,
            Some(bytes) => Some(
                decode_state(&bytes).ok_or_else(|| index.damaged("the state is garbled".into()))?,
            ),
        };
        Ok((index, state))
    }

    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let get = || -> Result<_, redb::Error> {
            let table = self.database.begin_read()?.open_table(META)?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        };
        get().map_err(|error| self.error(error))
    }

    fn meta_unsealed(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.meta(key)?;
        value.map(|value| self.unseal(key.as_bytes(), value)).transpose()
    }

    /// Gives every row of an index of the first format its checksum, all at once and durably.
    fn seal_all(&self, log: Option<Uuid>) -> Result<(), StoreError> {
        self.write(Durability::Immediate, |transaction| {
            let mut rows = transaction.open_table(ROWS)?;
            let mut from: Option<Vec<u8>> = None;
            loop {
                let after = from.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                let some: Vec<Pair> = rows
                    .range::<&[u8]>((after, Bound::Unbounded))?
                    .take(SEALED_AT_ONCE)
                    .map(|row| {
                        row.map(|(key, value)| (key.value().to_vec(), value.value().to_vec()))
                    })
                    .collect::<Result<_, _>>()?;
                for (key, value) in &some {
                    rows.insert(key.as_slice(), &sealed(key, value)[..])?;
                }
                match some.into_iter().next_back() {
                    Some((key, _)) => from = Some(key),
                    None => break,
                }
            }
            let mut meta = transaction.open_table(META)?;
            let state = meta.get(META_STATE)?.map(|state| state.value().to_vec());
            if let Some(state) = state {
                meta.insert(META_STATE, &sealed(META_STATE.as_bytes(), &state)[..])?;
            }
            if let Some(log) = log {
                meta.insert(META_LOG, &sealed(META_LOG.as_bytes(), log.as_bytes())[..])?;
            }
            meta.insert(META_FORMAT, &FORMAT.to_le_bytes()[..])?;
            Ok(())
        })
    }

    /// The value of a row without its checksum, which must be right.
    fn unseal(&self, key: &[u8], mut value: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        if !is_sealed(key, &value) {
            let what = format!("the checksum of row \"{}\" does not match", key.escape_ascii());
            return Err(self.damaged(what));
        }
        value.truncate(value.len() - SEAL_BYTES);
        Ok(value)
    }

    fn open_any(path: &str, file: Arc<dyn DiskFile>) -> Result<Self, StoreError> {
        let backend = Backend::new(file);
        let database = Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(backend.clone())
            .map_err(|error| database_error(path, error.into()))?;
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
        let value = get().map_err(|error| self.error(error))?;
        value.map(|value| self.unseal(key, value)).transpose()
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
        let rows = scan().map_err(|error| self.error(error))?;
        rows.into_iter()
            .map(|(key, value)| {
                let value = self.unseal(&key, value)?;
                Ok((key, value))
            })
            .collect()
    }

    /// Writes rows and the state they complete.
    ///
    /// A durable commit has quick repair on, so that a kill later does not cost a walk of the
    /// whole file.
    pub fn commit(&self, rows: &[Row], state: State, durable: bool) -> Result<(), StoreError> {
        let durability = if durable { Durability::Immediate } else { Durability::None };
        self.write(durability, |transaction| {
            let mut table = transaction.open_table(ROWS)?;
            for (key, value) in rows {
                match value {
                    Some(value) => drop(table.insert(key.as_slice(), &sealed(key, value)[..])?),
                    None => drop(table.remove(key.as_slice())?),
                }
            }
            let state = encode_state(state);
            transaction
                .open_table(META)?
                .insert(META_STATE, &sealed(META_STATE.as_bytes(), &state)[..])?;
            Ok(())
        })
    }

    fn write(
        &self,
        durability: Durability,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let write = || -> Result<(), redb::Error> {
            let mut transaction = self.database.begin_write()?;
            transaction.set_durability(durability)?;
            transaction.set_quick_repair(matches!(durability, Durability::Immediate));
            change(&transaction)?;
            Ok(transaction.commit()?)
        };
        write().map_err(|error| self.error(error))
    }

    fn error(&self, error: redb::Error) -> StoreError {
        database_error(&self.path, error)
    }

    fn damaged(&self, what: String) -> StoreError {
        StoreError::Damaged { file: self.path.clone(), offset: 0, what }
    }
}

fn database_error(path: &str, error: redb::Error) -> StoreError {
    match error {
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

/// A value with its checksum behind it.
fn sealed(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len() + SEAL_BYTES);
    bytes.extend_from_slice(value);
    bytes.extend_from_slice(&checksum(key, value).to_le_bytes());
    bytes
}

fn is_sealed(key: &[u8], bytes: &[u8]) -> bool {
    let split = bytes.len().checked_sub(SEAL_BYTES);
    let split = split.and_then(|at| bytes.split_at_checked(at));
    split.is_some_and(|(value, seal)| checksum(key, value).to_le_bytes() == seal)
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    // The length keeps what moves from a key into its value from going unseen.
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
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
mod tests {
    use super::*;
    use crate::disk::{OpenMode, SimDisk};

    /// An index as the first format wrote it.
    fn bare(disk: &SimDisk, rows: u32, state: State) {
        let file = disk.mount().open("index.redb", OpenMode::CreateNew).unwrap();
        let index = PartIndex::open_any("index.redb", file).unwrap();
        let written = index.write(Durability::Immediate, |transaction| {
            let mut table = transaction.open_table(ROWS)?;
            for number in 0..rows {
                let row = number.to_be_bytes();
                table.insert(&row[..], &row[..2])?;
            }
            let mut meta = transaction.open_table(META)?;
            meta.insert(META_FORMAT, &FORMAT_BARE.to_le_bytes()[..])?;
            meta.insert(META_STATE, &encode_state(state)[..])?;
            Ok(())
        });
        written.unwrap();
    }

    #[test]
    fn an_index_without_checksums_is_given_them_once() {
        let rows = 3 * u32::try_from(SEALED_AT_ONCE).unwrap() + 5;
        let position = Position { term: 2, index: 40 };
        let state = State { position, events_len: 7 };
        let disk = SimDisk::new(1);
        bare(&disk, rows, state);
        let log = Uuid::from_u128(3);
        for log in [Some(log), Some(log), None] {
            let file = disk.mount().open("index.redb", OpenMode::Existing).unwrap();
            let (index, found) = PartIndex::open("index.redb", file, log).unwrap();
            assert_eq!(found, Some(state));
            let found = index.scan(&[], &[0xff; 8], usize::MAX, false).unwrap();
            assert_eq!(found.len(), rows as usize);
            assert!(found.iter().all(|(key, value)| key[..2] == value[..]));
        }
        let file = disk.mount().open("index.redb", OpenMode::Existing).unwrap();
        let foreign = PartIndex::open("index.redb", file, Some(Uuid::from_u128(4)));
        assert!(matches!(foreign, Err(StoreError::Damaged { .. })), "it belongs to that log now");
    }

    #[test]
    fn a_row_is_sealed_with_its_key() {
        let row = sealed(b"key", b"value");
        assert!(is_sealed(b"key", &row));
        assert!(!is_sealed(b"kez", &row) && !is_sealed(b"ke", &row));
        assert!(!is_sealed(b"keyv", &row[1..]), "a byte moved from the value into the key");
        for bit in 0..row.len() * 8 {
            let mut flipped = row.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_sealed(b"key", &flipped), "bit {bit}");
        }
        assert!(!is_sealed(b"key", b"abc"), "shorter than a checksum");
    }
}
