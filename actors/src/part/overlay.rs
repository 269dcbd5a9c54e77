//! Rows of a part: those in its index, and over them those that are still to be written.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Bound;

use serde::de::DeserializeOwned;

use crate::codec;
use crate::ports::{Found, Row, Store, StoreError};

/// A part's rows.
#[derive(Default)]
pub struct Overlay {
    /// The files, once the part has any.
    pub store: Option<Box<dyn Store>>,
    pending: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    pending_bytes: usize,
}

impl Overlay {
    /// Rows in `store` alone.
    pub const fn new(store: Option<Box<dyn Store>>) -> Self {
        Self { store, pending: BTreeMap::new(), pending_bytes: 0 }
    }

    /// Adds rows that are still to be written.
    pub fn put(&mut self, rows: Vec<Row>) {
        for (key, value) in rows {
            self.pending_bytes += key.len() + value.as_ref().map_or(0, Vec::len);
            self.pending.insert(key, value);
        }
    }

    /// Bytes still to be written, counting rewritten rows each time.
    pub const fn pending_bytes(&self) -> usize {
        self.pending_bytes
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
        let value = match (self.pending.get(key), &self.store) {
            (Some(pending), _) => pending.clone(),
            (None, Some(store)) => store.get(key)?,
            (None, None) => None,
        };
        value.map(|value| decode_row(key, &value)).transpose()
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
        if from >= to {
            return Ok(Vec::new());
        }
        let pending = self.pending.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        let Some(store) = &self.store else {
            let mut rows: Vec<Found> =
                pending.filter_map(|(key, value)| Some((key.clone(), value.clone()?))).collect();
            if descending {
                rows.reverse();
            }
            rows.truncate(limit);
            return Ok(rows);
        };
        // A pending row may hide a stored one, so that a batch of stored rows may not be enough:
        // then the next is read. Never more than `limit` rows are held.
        let mut rows = Vec::new();
        let (mut from, mut to) = (from.to_vec(), to.to_vec());
        while rows.len() < limit && from < to {
            let wanted = limit - rows.len();
            let stored = store.scan(&from, &to, wanted, descending)?;
            let edge = stored.last().filter(|_| stored.len() >= wanted).map(|(key, _)| key.clone());
            let (mut next_from, mut next_to) = (to.clone(), to.clone());
            let (mut first, mut end) = (from.clone(), to.clone());
            if let Some(edge) = edge {
                // Pending rows beyond the edge are for the next batch.
                if descending {
                    (next_from, next_to) = (from.clone(), edge.clone());
                    first = edge;
                } else {
                    next_from = edge;
                    next_from.push(0);
                    end.clone_from(&next_from);
                }
            }
            let mut batch: BTreeMap<Cow<'_, [u8]>, Option<Cow<'_, [u8]>>> = stored
                .into_iter()
                .map(|(key, value)| (Cow::Owned(key), Some(Cow::Owned(value))))
                .collect();
            let within = (Bound::Included(first.as_slice()), Bound::Excluded(end.as_slice()));
            for (key, value) in self.pending.range::<[u8], _>(within) {
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
            (from, to) = (next_from, next_to);
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
    use crate::ids::Position;
    use crate::ports::{BoxFuture, StoreStats};

    /// Rows in a map: enough of a store to read from.
    struct MapStore(BTreeMap<Vec<u8>, Vec<u8>>);

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
        fn append_events(&mut self, _: &[u8]) -> Result<(), StoreError> {
            Ok(())
        }
        fn events_len(&self) -> u64 {
            0
        }
        fn read_events(&self, _: u64, _: usize) -> Result<Vec<u8>, StoreError> {
            Ok(Vec::new())
        }
        fn commit(&mut self, _: Vec<Row>, _: Position) -> Result<(), StoreError> {
            Ok(())
        }
        fn make_durable(
            &mut self,
            _: Vec<Row>,
            _: Position,
        ) -> BoxFuture<'_, Result<(), StoreError>> {
            Box::pin(async { Ok(()) })
        }
        fn stats(&self) -> Result<StoreStats, StoreError> {
            Ok(StoreStats::default())
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
            let mut overlay = Overlay::new(Some(Box::new(MapStore(model.clone()))));
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
