//! A log, and the files of one replica, that remember what was asked of them.

use super::*;

/// A log that has everything handed over, and the files of one replica.
#[derive(Default)]
pub(super) struct World {
    pub(super) entries: Mutex<Vec<LogEntry>>,
    /// The first bytes of the keys of rows that were read, in order.
    pub(super) scanned: Mutex<Vec<u8>>,
    /// How many bytes each replay gave.
    pub(super) replayed: Mutex<Vec<usize>>,
    /// What was asked of the files, in order, and what was reported as durable.
    pub(super) story: Mutex<Vec<String>>,
    pub(super) rows: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
    pub(super) events: Mutex<Vec<u8>>,
    pub(super) position: Mutex<Option<Position>>,
    pub(super) reported: Mutex<Option<Position>>,
    pub(super) is_idle: Mutex<bool>,
    pub(super) exists: Mutex<bool>,
    /// How far the files go, as the log was told.
    pub(super) filed: Mutex<Option<Position>>,
    /// Whether the log has no room.
    pub(super) is_full: Mutex<bool>,
    /// Whether somebody reads a view of the files.
    pub(super) is_viewed: Mutex<bool>,
    /// The term that the log has for every entry, where it knows.
    pub(super) term: Mutex<Option<u64>>,
}

pub(super) struct MemStore(pub(super) Arc<World>);

impl World {
    pub(super) fn tell(&self, what: impl Into<String>) {
        self.story.lock().unwrap().push(what.into());
    }

    pub(super) fn story(&self) -> Vec<String> {
        std::mem::take(&mut self.story.lock().unwrap())
    }

    pub(super) fn position(&self) -> MutexGuard<'_, Option<Position>> {
        self.position.lock().unwrap()
    }

    pub(super) fn write(&self, rows: Vec<Row>, position: Position) {
        let mut held = self.rows.lock().unwrap();
        for (key, value) in rows {
            match value {
                Some(value) => held.insert(key, value),
                None => held.remove(&key),
            };
        }
        *self.position() = Some(position);
    }
}

impl World {
    pub(super) fn lose_files(&self, how: &str) {
        self.tell(how);
        *self.exists.lock().unwrap() = false;
        *self.position() = None;
        self.rows.lock().unwrap().clear();
        self.events.lock().unwrap().clear();
    }
}

impl Durability for World {
    fn replay(
        &self,
        _: GroupId,
        _: StateMachineId,
        from: u64,
        upto: u64,
    ) -> BoxFuture<'_, Result<Replay, StoreError>> {
        let mut replay = Replay::default();
        let mut bytes = 0;
        for (position, envelope) in &*self.entries.lock().unwrap() {
            if (from..=upto).contains(&position.index) {
                if bytes >= LOG_BYTES_AT_ONCE {
                    replay.next = Some(position.index);
                    break;
                }
                bytes += codec::encoded_len(envelope.as_ref());
                replay.entries.push((*position, Arc::clone(envelope)));
            }
        }
        self.replayed.lock().unwrap().push(bytes);
        Box::pin(async { Ok(replay) })
    }

    fn belongs(
        &self,
        _: GroupId,
        _: StateMachineId,
        held: Option<Position>,
    ) -> Result<(), LogMismatch> {
        match (*self.filed.lock().unwrap(), held) {
            (Some(_), None) => Err(LogMismatch::Missing),
            (Some(filed), Some(held)) if held < filed => Err(LogMismatch::Older),
            _ => Ok(()),
        }
    }

    fn term_at(&self, _: GroupId, _: u64) -> Option<u64> {
        *self.term.lock().unwrap()
    }

    fn filed(&self, _: StateMachineId, upto: Position) {
        *self.filed.lock().unwrap() = Some(upto);
    }

    fn with_files(&self) -> std::collections::BTreeSet<StateMachineId> {
        std::collections::BTreeSet::new()
    }

    fn unfile(&self, _: GroupId, _: StateMachineId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.tell("unfiled");
        *self.filed.lock().unwrap() = None;
        Box::pin(async { Ok(()) })
    }

    fn durable(&self, _: GroupId, _: StateMachineId, upto: Position) {
        // It is said again after each batch; once is told here.
        let told = format!("reported {}", upto.index);
        if self.reported.lock().unwrap().replace(upto) != Some(upto) {
            self.tell(told);
        }
    }

    fn has_room(&self) -> bool {
        !*self.is_full.lock().unwrap()
    }
}

impl Store for MemStore {
    fn position(&self) -> Option<Position> {
        *self.0.position()
    }
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.rows.lock().unwrap().get(key).cloned())
    }
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        _: bool,
    ) -> Result<Vec<Found>, StoreError> {
        let rows = self.0.rows.lock().unwrap();
        let found = rows.range(from.to_vec()..to.to_vec()).take(limit);
        let found: Vec<_> = found.map(|(key, value)| (key.clone(), value.clone())).collect();
        self.0.scanned.lock().unwrap().extend(found.iter().map(|(key, _)| key[0]));
        Ok(found)
    }
    fn append_events(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.0.events.lock().unwrap().extend_from_slice(bytes);
        Ok(())
    }
    fn events_len(&self) -> u64 {
        self.0.events.lock().unwrap().len() as u64
    }
    fn read_events(&self, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        let from = usize::try_from(offset).unwrap();
        Ok(self.0.events.lock().unwrap()[from..from + len].to_vec())
    }
    fn make_durable(
        &mut self,
        rows: Vec<Row>,
        position: Position,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.tell(format!("durable {}", position.index));
        self.0.write(rows, position);
        Box::pin(async { Ok(()) })
    }
    fn is_idle(&self) -> bool {
        *self.0.is_idle.lock().unwrap()
    }
    fn set_idle(&mut self, is_idle: bool) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.tell(if is_idle { "marked" } else { "unmarked" });
        *self.0.is_idle.lock().unwrap() = is_idle;
        Box::pin(async { Ok(()) })
    }
    fn view(&mut self) -> Result<Box<dyn View>, StoreError> {
        Ok(snapshots::view(&self.0))
    }
    fn is_viewed(&self) -> bool {
        *self.0.is_viewed.lock().unwrap()
    }
    fn stats(&self) -> Result<StoreStats, StoreError> {
        let index_bytes = self.0.rows.lock().unwrap().len() as u64;
        Ok(StoreStats { index_bytes, ..StoreStats::default() })
    }
}

impl Drop for MemStore {
    fn drop(&mut self) {
        self.0.tell("closed");
    }
}

pub(super) struct MemStores(pub(super) Arc<World>);

impl Stores for MemStores {
    fn open(&self, _: StateMachineId) -> BoxFuture<'_, Result<Box<dyn Store>, StoreError>> {
        self.0.tell("opened");
        *self.0.exists.lock().unwrap() = true;
        Box::pin(async { Ok(Box::new(MemStore(Arc::clone(&self.0))) as Box<dyn Store>) })
    }
    fn exists(&self, _: StateMachineId) -> Result<bool, StoreError> {
        Ok(*self.0.exists.lock().unwrap())
    }
    fn remove(&self, _: TenantId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.lose_files("removed");
        Box::pin(async { Ok(()) })
    }
    fn stage(
        &self,
        _: StateMachineId,
        _: u64,
    ) -> BoxFuture<'_, Result<Box<dyn Staging>, StoreError>> {
        unreachable!()
    }
    fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        unreachable!()
    }
    fn tenants_with_work(&self) -> BoxFuture<'_, Result<Vec<TenantId>, StoreError>> {
        unreachable!()
    }
}
