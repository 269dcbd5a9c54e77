//! The part of a group, as the tests have it: rows in memory, some of them durable.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::StreamExt as _;
use shiioo_actors::command::{CancelRun, Outcome};
use shiioo_actors::command::{Command, Envelope, TenantCommand};
use shiioo_actors::domain::ids::{Epoch, GroupId, Position, StateMachineId};
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::ports::{
    ApplySink, BoxFuture, CommittedEntry, Dump, DumpPart, Held, Payload, Staged, Staging,
    StateDigest, StoreError,
};

use crate::raft::snapshot::tests::{Come, MemStaging};

/// What the part holds: texts by index.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Contents {
    pub position: Option<Position>,
    pub texts: BTreeMap<u64, String>,
}

/// Where an installation stops and never goes on, for a power cut to hit it there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stall {
    Nowhere,
    BeforeDurable,
    AfterDurable,
}

/// Bytes that the part takes where it is sent to, by its own account.
pub const DUMP_BYTES: u64 = 1 << 20;

#[derive(Debug)]
pub struct TestPart {
    live: Mutex<Contents>,
    /// Survives power cuts.
    durable: Arc<Mutex<Contents>>,
    stall: Mutex<Stall>,
    /// Positions delivered in this life.
    handed: Mutex<Vec<Position>>,
    installed: Mutex<Vec<Option<Position>>>,
    /// What comes of another replica's.
    come: Arc<parking_lot::Mutex<Come>>,
    /// How often there was no room for it.
    refused: AtomicUsize,
    /// What this part was told that it held and two others did not.
    distrusted: Mutex<Vec<(Position, StateDigest)>>,
    /// Whether nothing can be made durable for lack of room.
    is_full: AtomicBool,
    /// Whether the log asked for room.
    is_write_wanted: AtomicBool,
    /// Whether it does not tell what it holds, and never will.
    is_silent: AtomicBool,
}

pub fn part() -> StateMachineId {
    StateMachineId::Tenant("00000000-0000-0000-0000-000000000001".parse().unwrap())
}

pub fn command(text: &str) -> Envelope {
    let run = "10000000-0000-0000-0000-000000000000".parse().unwrap();
    let StateMachineId::Tenant(tenant) = part() else { unreachable!() };
    let command = TenantCommand::CancelRun(CancelRun { run, reason: Some(text.into()) });
    let command = Command::Tenant { tenant, epoch: Epoch(1), command };
    Envelope { version: 1, at: Timestamp(0), term: None, cause: None, rpc_id: None, command }
}

impl TestPart {
    pub fn open(durable: Arc<Mutex<Contents>>) -> Arc<Self> {
        let live = Mutex::new(durable.lock().unwrap().clone());
        let stall = Mutex::new(Stall::Nowhere);
        Arc::new(Self {
            live,
            durable,
            stall,
            handed: Mutex::default(),
            installed: Mutex::default(),
            come: Arc::default(),
            refused: AtomicUsize::new(0),
            distrusted: Mutex::default(),
            is_full: AtomicBool::new(false),
            is_write_wanted: AtomicBool::new(false),
            is_silent: AtomicBool::new(false),
        })
    }

    pub fn live(&self) -> MutexGuard<'_, Contents> {
        self.live.lock().unwrap()
    }

    pub fn texts(&self) -> Vec<String> {
        self.live().texts.values().cloned().collect()
    }

    pub fn stall(&self, stall: Stall) {
        *self.stall.lock().unwrap() = stall;
    }

    pub fn handed(&self) -> Vec<Position> {
        self.handed.lock().unwrap().clone()
    }

    pub fn installed(&self) -> Vec<Option<Position>> {
        self.installed.lock().unwrap().clone()
    }

    /// Tells whether all of another replica's has come.
    pub fn is_whole(&self) -> bool {
        self.come.lock().sealed.is_some()
    }

    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Acquire)
    }

    pub fn distrusted(&self) -> Vec<(Position, StateDigest)> {
        self.distrusted.lock().unwrap().clone()
    }

    pub fn set_full(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::Release);
    }

    pub fn set_silent(&self, is_silent: bool) {
        self.is_silent.store(is_silent, Ordering::Release);
    }

    pub fn is_write_wanted(&self) -> bool {
        self.is_write_wanted.load(Ordering::Acquire)
    }

    fn settled(&self) -> Result<(), StoreError> {
        let is_dirty = *self.live() != *self.durable.lock().unwrap();
        if is_dirty && self.is_full.load(Ordering::Acquire) {
            return Err(StoreError::Full);
        }
        self.flush();
        Ok(())
    }

    /// Makes all it holds durable, and says up to where.
    pub fn flush(&self) -> Option<Position> {
        let live = self.live();
        *self.durable.lock().unwrap() = live.clone();
        live.position
    }
}

impl ApplySink for TestPart {
    fn write_soon(&self, _group: GroupId, named: StateMachineId) {
        assert_eq!(named, part());
        self.is_write_wanted.store(true, Ordering::Release);
    }

    fn deliver(&self, _group: GroupId, entry: CommittedEntry) {
        let mut handed = self.handed.lock().unwrap();
        assert!(handed.last().is_none_or(|last| *last < entry.position), "out of order");
        handed.push(entry.position);
        drop(handed);
        if let Payload::Command(envelope) = &entry.payload
            && let Command::Tenant { command, .. } = &envelope.command
            && let TenantCommand::CancelRun(CancelRun { reason: Some(text), .. }) = command
        {
            let mut live = self.live();
            if live.position < Some(entry.position) {
                live.texts.insert(entry.position.index, text.clone());
                live.position = Some(entry.position);
            }
        }
        if let Some(reply) = entry.reply {
            reply.send(Outcome::Done);
        }
    }

    fn parts(&self, _: GroupId) -> BoxFuture<'_, Result<Vec<StateMachineId>, StoreError>> {
        Box::pin(async { Ok(vec![part()]) })
    }

    fn held(&self, _: GroupId, _: StateMachineId) -> BoxFuture<'_, Result<Held, StoreError>> {
        Box::pin(async {
            if self.is_silent.load(Ordering::Acquire) {
                std::future::pending::<()>().await;
            }
            self.settled()?;
            Ok(Held { position: self.live().position, events: 0 })
        })
    }

    fn dump(
        &self,
        _: GroupId,
        _: StateMachineId,
        beyond: Held,
    ) -> BoxFuture<'_, Result<Option<Dump>, StoreError>> {
        let Contents { position, texts } = self.live().clone();
        // A part for each text, and one more.
        let of_text = |(at, text): (u64, String)| {
            let rows = vec![(at.to_be_bytes().to_vec(), text.into_bytes())];
            Ok(DumpPart { rows, events: Vec::new() })
        };
        let parts = texts.into_iter().map(of_text).chain([Ok(DumpPart::default())]);
        let parts = futures_util::stream::iter(parts.collect::<Vec<_>>()).boxed();
        let newer = position.filter(|_| position > beyond.position);
        let dump =
            newer.map(|position| Dump { position, events_from: 0, bytes: DUMP_BYTES, parts });
        Box::pin(async move { Ok(dump) })
    }

    fn stage(
        &self,
        _: GroupId,
        _: StateMachineId,
        events_from: u64,
    ) -> BoxFuture<'_, Result<Box<dyn Staging>, StoreError>> {
        Box::pin(async move { Ok(MemStaging::begin(&self.come, events_from)) })
    }

    fn install(
        &self,
        _: GroupId,
        _: StateMachineId,
        staged: Staged,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let stall = *self.stall.lock().unwrap();
            if stall == Stall::BeforeDurable {
                std::future::pending::<()>().await;
            }
            let Come { rows, sealed, .. } = self.come.lock().clone();
            assert_eq!(sealed, Some(staged.position));
            if self.is_full.load(Ordering::Acquire) {
                self.refused.fetch_add(1, Ordering::AcqRel);
                return Err(StoreError::Full);
            }
            self.installed.lock().unwrap().push(sealed);
            if self.live().position < sealed {
                let texts = rows.into_iter().map(|(key, value)| {
                    let at = u64::from_be_bytes(key.try_into().unwrap());
                    (at, String::from_utf8(value).unwrap())
                });
                *self.live() = Contents { position: sealed, texts: texts.collect() };
                self.settled()?;
            }
            if stall == Stall::AfterDurable {
                std::future::pending::<()>().await;
            }
            Ok(())
        })
    }

    fn digest(
        &self,
        _: GroupId,
        _: StateMachineId,
        at: Position,
    ) -> BoxFuture<'_, Result<Option<StateDigest>, StoreError>> {
        let texts = u8::try_from(self.live().texts.len()).unwrap();
        let digest = (self.live().position == Some(at)).then_some(StateDigest([texts; 32]));
        Box::pin(async move { Ok(digest) })
    }

    fn distrust(
        &self,
        _: GroupId,
        _: StateMachineId,
        at: Position,
        digest: StateDigest,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        self.distrusted.lock().unwrap().push((at, digest));
        Box::pin(async { Ok(()) })
    }

    fn leave(&self, _: GroupId) -> BoxFuture<'_, Result<(), StoreError>> {
        *self.live() = Contents::default();
        self.flush();
        self.handed.lock().unwrap().clear();
        Box::pin(async { Ok(()) })
    }

    fn keep_only(
        &self,
        _: GroupId,
        parts: Vec<StateMachineId>,
        _: Position,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        assert_eq!(parts, [part()]);
        Box::pin(async { Ok(()) })
    }
}
