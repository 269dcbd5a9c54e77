//! Rows of a replica: those in its index, and over them those that are still to be written.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::domain::codec;
use crate::ports::{Found, Row, Store, StoreError};

/// A replica's rows.
#[derive(Default)]
pub struct RowBuffer {
    /// The files, once the replica has any.
    pub store: Option<Box<dyn Store>>,
    /// Whether the replica has files that cannot be opened for lack of room: what is not in memory
    /// cannot be read then, and is not to be taken for not there.
    pub is_shut: bool,
    pending: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    pending_bytes: usize,
    /// The files are there and closed for now: nothing can be read, and nothing is missing.
    let_go: bool,
    /// Events since the last durable write. Most are in the file already; they are kept because a
    /// write that finds no room takes back what was not durable.
    events: Vec<u8>,
    /// Where they begin, in all events of the replica.
    events_at: u64,
}

impl RowBuffer {
    /// Rows in `store` alone.
    pub fn new(store: Option<Box<dyn Store>>) -> Self {
        let events_at = store.as_ref().map_or(0, |store| store.events_len());
        Self { store, events_at, ..Self::default() }
    }

    /// Closes the files for a while. All rows and events must be in them.
    pub fn let_go(&mut self) {
        self.let_go |= self.store.take().is_some();
    }

    /// Notes that the files cannot be opened for lack of room.
    pub fn shut(&mut self) {
        self.is_shut |= self.let_go;
        self.let_go = false;
    }

    /// Whether the files are closed for a while.
    pub const fn is_let_go(&self) -> bool {
        self.let_go
    }

    /// Whether the replica has files, open or not.
    pub const fn has_files(&self) -> bool {
        self.store.is_some() || self.let_go || self.is_shut
    }

    /// Takes the files, which were opened.
    pub fn take_back(&mut self, store: Box<dyn Store>) {
        self.store = Some(store);
        (self.let_go, self.is_shut) = (false, false);
    }

    /// Fails while the files are closed: rows that cannot be read are not rows that are missing.
    fn check(&self) -> Result<(), StoreError> {
        if !self.let_go {
            return Ok(());
        }
        let source = Arc::new(io::Error::other("they are closed at the moment"));
        Err(StoreError::Io { what: "read the files of a part".to_owned(), source })
    }

    /// Adds events that are still to be made durable.
    pub fn put_events(&mut self, events: &[u8]) {
        self.events.extend_from_slice(events);
    }

    /// Appends to the file what it lacks of the events.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_events(&mut self) -> Result<(), StoreError> {
        let Some(store) = &mut self.store else { return Ok(()) };
        let written = store.events_len().saturating_sub(self.events_at);
        let written = usize::try_from(written).unwrap_or(usize::MAX);
        match self.events.get(written..) {
            Some(missing) if !missing.is_empty() => store.append_events(missing),
            _ => Ok(()),
        }
    }

    /// Bytes of all events of the replica, in the file and in memory.
    pub const fn events_total(&self) -> u64 {
        self.events_at + self.events.len() as u64
    }

    /// Forgets what has become durable: rows that were taken are in the index, events in the file.
    pub fn settled(&mut self) {
        self.events = Vec::new();
        self.events_at = self.store.as_ref().map_or(0, |store| store.events_len());
    }

    /// Reads events, where they are: in the file, in memory, or at the end of one and the beginning of the
    /// other.
    ///
    /// # Errors
    /// When the file cannot be read or they are not there.
    pub fn read_events(&self, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        self.check()?;
        let in_memory = |from: u64, len: usize| {
            let from = usize::try_from(from.checked_sub(self.events_at)?).ok()?;
            self.events.get(from..from.checked_add(len)?)
        };
        if let Some(events) = in_memory(offset, len) {
            return Ok(events.to_vec());
        }
        let Some(store) = &self.store else { return Err(StoreError::Full) };
        // What of it is in the file, where the rest is in memory.
        let before = self.events_at.checked_sub(offset).and_then(|it| usize::try_from(it).ok());
        let before = before.filter(|before| *before < len);
        match before.and_then(|before| Some((before, in_memory(self.events_at, len - before)?))) {
            Some((before, behind)) => Ok([&store.read_events(offset, before)?, behind].concat()),
            None => store.read_events(offset, len),
        }
    }

    /// Bytes of events that the file does not have.
    pub fn events_to_write(&self) -> u64 {
        let written = self.store.as_ref().map_or(self.events_at, |store| store.events_len());
        (self.events_at + self.events.len() as u64).saturating_sub(written)
    }

    /// Adds rows that are still to be written.
    pub fn put(&mut self, rows: Vec<Row>) {
        for (key, value) in rows {
            let (key_bytes, bytes) = (key.len(), value.as_ref().map_or(0, Vec::len));
            self.pending_bytes += key_bytes + bytes;
            if let Some(before) = self.pending.insert(key, value) {
                self.pending_bytes -= key_bytes + before.map_or(0, |before| before.len());
            }
        }
    }

    /// Bytes still to be made durable.
    pub const fn pending_bytes(&self) -> usize {
        self.pending_bytes + self.events.len()
    }

    /// The rows still to be written; they are taken for written from now on.
    pub fn take_pending(&mut self) -> Vec<Row> {
        self.pending_bytes = 0;
        std::mem::take(&mut self.pending).into_iter().collect()
    }

    /// The decoded value of a key.
    ///
    /// # Errors
    /// When the index cannot be read or the value cannot be decoded.
    pub fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        self.value(key)?.map(|value| decode_row(key, &value)).transpose()
    }

    /// The value of a key.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.check()?;
        match (self.pending.get(key), &self.store) {
            (Some(pending), _) => Ok(pending.clone()),
            (None, Some(store)) => store.get(key),
            (None, None) if self.is_shut => Err(StoreError::Full),
            (None, None) => Ok(None),
        }
    }

    /// Up to `limit` rows with `from <= key < to`, ascending, or descending from the end.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        descending: bool,
    ) -> Result<Vec<Found>, StoreError> {
        self.check()?;
        if from >= to {
            return Ok(Vec::new());
        }
        if self.store.is_none() && self.is_shut {
            return Err(StoreError::Full);
        }
        // Two ordered sources are merged, the pending rows over the stored ones. How many stored rows are
        // needed is not known in advance: a pending row may hide a stored one (new value) or take it
        // away (deletion). So stored rows are read in batches of what is still wanted. Never more than
        // `limit` rows are held, whatever the range.
        //
        // A batch that came full says nothing about what lies behind its last key, the *edge*. Pending
        // rows are merged up to the edge only, the edge included: one beyond it might have to come
        // after a stored row that has not been read. The next batch goes on behind the edge. A batch
        // that came short ends the stored rows, and takes the rest of the pending ones.
        let mut rows = Vec::new();
        let (mut from, mut to) = (from.to_vec(), to.to_vec());
        while rows.len() < limit && from < to {
            let wanted = limit - rows.len();
            let stored = match &self.store {
                Some(store) => store.scan(&from, &to, wanted, descending)?,
                None => Vec::new(),
            };
            let edge = stored.last().filter(|_| stored.len() >= wanted).map(|(key, _)| key.clone());
            // What this batch covers, and what is left for the next.
            let (covered, left) = match edge {
                None => (from..to.clone(), (to.clone(), to)),
                Some(edge) if descending => (edge.clone()..to, (from, edge)),
                Some(edge) => {
                    // The smallest key after the edge.
                    let after = [edge.as_slice(), &[0]].concat();
                    (from..after.clone(), (after, to))
                }
            };
            let mut batch: BTreeMap<Cow<'_, [u8]>, Option<Cow<'_, [u8]>>> = stored
                .into_iter()
                .map(|(key, value)| (Cow::Owned(key), Some(Cow::Owned(value))))
                .collect();
            for (key, value) in self.pending.range(covered) {
                batch.insert(Cow::Borrowed(key), value.as_deref().map(Cow::Borrowed));
            }
            let batch = batch
                .into_iter()
                .filter_map(|(key, value)| Some((key, value?)))
                .map(|(key, value)| (key.into_owned(), value.into_owned()));
            if descending {
                rows.extend(batch.rev().take(wanted));
            } else {
                rows.extend(batch.take(wanted));
            }
            (from, to) = left;
        }
        Ok(rows)
    }

    /// Every row whose key begins with the byte `kind`, without it, decoded.
    ///
    /// # Errors
    /// When the index cannot be read or a value cannot be decoded.
    pub fn all<T: DeserializeOwned>(&self, kind: u8) -> Result<Vec<(Vec<u8>, T)>, StoreError> {
        let rows = self.scan(&[kind], &[kind + 1], usize::MAX / 2, false)?;
        rows.into_iter()
            .map(|(key, value)| Ok((key[1..].to_vec(), decode_row(&key, &value)?)))
            .collect()
    }
}

/// Makes the key of a row of a kind.
pub fn row_key(kind: u8, id: &[u8]) -> Vec<u8> {
    [&[kind], id].concat()
}

/// Decodes a row of the index.
///
/// # Errors
/// When it is no encoding of a `T`.
pub fn decode_row<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T, StoreError> {
    codec::decode(value).map_err(|error| StoreError::Damaged {
        file: "index".to_owned(),
        offset: 0,
        what: format!("row {:?}: {error}", String::from_utf8_lossy(key)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::ids::Position;
    use crate::ports::{BoxFuture, StoreStats, View};

    /// Rows in a map, and events: enough of a store to read from.
    #[derive(Default)]
    struct MapStore(BTreeMap<Vec<u8>, Vec<u8>>, Vec<u8>);

    impl Store for MapStore {
        fn position(&self) -> Option<Position> {
            None
        }
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            Ok(self.0.get(key).cloned())
        }
        fn scan(
            &self,
            from: &[u8],
            to: &[u8],
            limit: usize,
            descending: bool,
        ) -> Result<Vec<Found>, StoreError> {
            let rows = self.0.range(from.to_vec()..to.to_vec());
            let pair = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.clone(), value.clone());
            Ok(if descending {
                rows.rev().take(limit).map(pair).collect()
            } else {
                rows.take(limit).map(pair).collect()
            })
        }
        fn append_events(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
            self.1.extend_from_slice(bytes);
            Ok(())
        }
        fn events_len(&self) -> u64 {
            self.1.len() as u64
        }
        fn read_events(&self, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
            let from = usize::try_from(offset).unwrap();
            self.1.get(from..from + len).map(<[u8]>::to_vec).ok_or(StoreError::Full)
        }
        fn make_durable(
            &mut self,
            _: Vec<Row>,
            _: Position,
        ) -> BoxFuture<'_, Result<(), StoreError>> {
            Box::pin(async { Ok(()) })
        }
        fn view(&mut self) -> Result<Box<dyn View>, StoreError> {
            unreachable!()
        }
        fn stats(&self) -> Result<StoreStats, StoreError> {
            Ok(StoreStats::default())
        }
    }

    #[test]
    fn events_are_read_where_they_are_and_written_once() {
        let store = MapStore(BTreeMap::new(), b"file".to_vec());
        let mut rows = RowBuffer::new(Some(Box::new(store)));
        rows.put_events(b"12345");
        assert_eq!((rows.events_to_write(), rows.pending_bytes()), (5, 5));
        for (offset, len, expected) in
            [(0, 4, "file"), (4, 5, "12345"), (6, 2, "34"), (1, 0, ""), (2, 4, "le12")]
        {
            assert_eq!(rows.read_events(offset, len).unwrap(), expected.as_bytes());
        }
        for (offset, len) in [(7, 4), (2, 8), (9, 1)] {
            assert!(rows.read_events(offset, len).is_err(), "beyond the end: {offset}, {len}");
        }
        rows.write_events().unwrap();
        rows.write_events().unwrap();
        assert_eq!(rows.store.as_ref().unwrap().events_len(), 9);
        assert_eq!((rows.events_to_write(), rows.pending_bytes()), (0, 5), "not durable yet");
        rows.settled();
        assert_eq!(rows.pending_bytes(), 0);
        assert_eq!(rows.read_events(2, 4).unwrap(), b"le12");
        rows.put(vec![(vec![1, 2], Some(vec![3; 10])), (vec![4], None)]);
        assert_eq!(rows.pending_bytes(), 13);
        rows.put(vec![(vec![1, 2], Some(vec![3; 4])), (vec![4], Some(vec![5]))]);
        assert_eq!(rows.pending_bytes(), 8, "of each key what it holds last");
        assert_eq!((rows.take_pending().len(), rows.pending_bytes()), (2, 0));
    }

    /// What cannot be read at the moment is not taken for nothing.
    #[test]
    fn files_that_are_closed_are_not_empty_and_those_that_are_not_there_are() {
        let store = || Box::new(MapStore::default()) as Box<dyn Store>;
        let of = |rows: &RowBuffer| {
            let can_scan = rows.scan(&[0], &[9], 1, false).is_ok();
            let can_read = rows.get::<u64>(b"x").is_ok();
            assert_eq!(rows.all::<u64>(1).is_ok(), can_scan);
            assert_eq!(can_read, can_scan);
            (rows.has_files(), rows.is_let_go(), can_read)
        };
        let mut closed = RowBuffer::new(Some(store()));
        assert_eq!(of(&closed), (true, false, true));
        closed.let_go();
        assert_eq!(of(&closed), (true, true, false));
        let mut shut = RowBuffer::new(Some(store()));
        shut.let_go();
        shut.shut();
        assert_eq!(of(&shut), (true, false, false));
        let mut none = RowBuffer::default();
        none.let_go();
        none.shut();
        assert_eq!(of(&none), (false, false, true));
        for mut rows in [closed, shut] {
            rows.take_back(store());
            assert_eq!(of(&rows), (true, false, true));
        }
    }

    proptest! {
        /// Pending rows over stored ones read like one ordered map.
        #[test]
        fn reads_like_one_map(
            stored in prop::collection::btree_map(0_u8..20, any::<u8>(), 0..15),
            pending in prop::collection::btree_map(0_u8..20, prop::option::of(any::<u8>()), 0..15),
            (from, to, limit) in (0_u8..20, 0_u8..20, 0_usize..12),
            descending: bool,
        ) {
            let row = |byte: u8| vec![byte];
            let mut model: BTreeMap<Vec<u8>, Vec<u8>> =
                stored.iter().map(|(key, value)| (row(*key), row(*value))).collect();
            let mut overlay = RowBuffer::new(Some(Box::new(MapStore(model.clone(), Vec::new()))));
            overlay.put(pending.iter().map(|(key, value)| (row(*key), value.map(row))).collect());
            for (key, value) in pending {
                match value {
                    Some(value) => model.insert(row(key), row(value)),
                    None => model.remove(&row(key)),
                };
            }
            let mut expected: Vec<Found> = model
                .into_iter()
                .filter(|(key, _)| (row(from)..row(to)).contains(key))
                .collect();
            if descending {
                expected.reverse();
            }
            expected.truncate(limit);
            prop_assert_eq!(overlay.scan(&[from], &[to], limit, descending).unwrap(), expected);
        }
    }
}
