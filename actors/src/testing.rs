//! Doubles of ports, and samples of what is replicated, that tests of several crates share. Nothing
//! else names them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;
use uuid::Uuid;

use crate::command::{COMMAND_VERSION, CancelRun, Command, Envelope, TenantCommand};
use crate::domain::ids::{
    Epoch, GroupId, NodeId, Position, RaftId, RunId, StateMachineId, TenantId,
};
use crate::domain::json::Json;
use crate::domain::membership::Member;
use crate::domain::region::Region;
use crate::domain::tenant::{Quotas, Settings, TenantRecord, TenantStatus};
use crate::domain::time::Timestamp;
use crate::ports::seams::{ByteStream, Clock, Entropy, Seams};
use crate::ports::{
    BoxFuture, Durability, LogMismatch, Peer, PeerError, Peers, Replay, Service, StoreError,
    StreamService,
};

/// A clock that stands.
#[derive(Debug, Clone, Copy)]
pub struct At(pub Timestamp);

impl Clock for At {
    fn now(&self) -> Timestamp {
        self.0
    }
}

/// Entropy of one byte, again and again.
#[derive(Debug, Clone, Copy)]
pub struct Sevens;

impl Entropy for Sevens {
    fn fill(&self, buffer: &mut [u8]) {
        buffer.fill(7);
    }
}

/// A log that everything belongs to.
#[derive(Debug, Clone, Copy)]
pub struct AnyLog;

impl Durability for AnyLog {
    fn replay(
        &self,
        _: GroupId,
        _: StateMachineId,
        _: u64,
        _: u64,
    ) -> BoxFuture<'_, Result<Replay, StoreError>> {
        unreachable!()
    }
    fn belongs(
        &self,
        _: GroupId,
        _: StateMachineId,
        _: Option<Position>,
    ) -> Result<(), LogMismatch> {
        Ok(())
    }
    fn term_at(&self, _: GroupId, _: u64) -> Option<u64> {
        None
    }
    fn filed(&self, _: StateMachineId, _: Position) {}
    fn with_files(&self) -> BTreeSet<StateMachineId> {
        BTreeSet::new()
    }
    fn unfile(&self, _: GroupId, _: StateMachineId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }
    fn durable(&self, _: GroupId, _: StateMachineId, _: Position) {}
    fn has_room(&self) -> bool {
        true
    }
}

/// Seams without time or chance.
pub fn fixed_seams(now: Timestamp) -> Seams {
    Seams { clock: Arc::new(At(now)), entropy: Arc::new(Sevens) }
}

/// Members that cannot be reached.
#[derive(Debug, Clone, Copy)]
pub struct NoPeers;

impl Peers for NoPeers {
    fn call(
        &self,
        to: RaftId,
        _: Service,
        _: Vec<u8>,
        _: Instant,
    ) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        Box::pin(async move { Err(PeerError::Unreachable { to, why: "nobody is there".into() }) })
    }

    fn open_stream(
        &self,
        to: RaftId,
        _: StreamService,
        _: Instant,
    ) -> BoxFuture<'_, Result<Box<dyn ByteStream>, PeerError>> {
        Box::pin(async move { Err(PeerError::Unreachable { to, why: "nobody is there".into() }) })
    }

    fn set_members(&self, _: Vec<Peer>, _: RaftId) {}
}

/// Peers that answer a call at once: whom it goes to and what is asked say what.
pub struct AnsweringPeers<F>(pub F);

impl<F> Peers for AnsweringPeers<F>
where
    F: Fn(RaftId, Vec<u8>) -> Result<Vec<u8>, PeerError> + Send + Sync + 'static,
{
    fn call(
        &self,
        to: RaftId,
        _: Service,
        request: Vec<u8>,
        _: Instant,
    ) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        let answer = self.0(to, request);
        Box::pin(async move { answer })
    }

    fn open_stream(
        &self,
        to: RaftId,
        service: StreamService,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Box<dyn ByteStream>, PeerError>> {
        NoPeers.open_stream(to, service, deadline)
    }

    fn set_members(&self, _: Vec<Peer>, _: RaftId) {}
}

/// The id of a tenant.
pub const fn tenant(number: u128) -> TenantId {
    TenantId::from_uuid(Uuid::from_u128(number))
}

/// The record of a tenant that has no wishes.
pub fn tenant_record() -> TenantRecord {
    TenantRecord {
        name: "acme".into(),
        description: String::new(),
        status: TenantStatus::Active,
        quotas: Quotas::default(),
        settings: Settings {
            data_retention_days: 90,
            enable_audit_logging: true,
            metadata: Json::null(),
        },
        region: Region::default(),
        created_at: Timestamp(0),
        updated_at: Timestamp(0),
    }
}

/// A member in the region `default`, whose raft id and node id are the same number.
pub fn member(number: u64) -> Member {
    Member {
        node: NodeId::from_uuid(Uuid::from_u128(number.into())),
        raft_id: RaftId(number),
        api_addr: "a".into(),
        node_addr: "n".into(),
        region: Region::default(),
        labels: BTreeMap::new(),
        version: "0".into(),
    }
}

/// A command of this version, proposed by nobody in no term.
pub const fn envelope(command: Command) -> Envelope {
    let (version, at) = (COMMAND_VERSION, Timestamp(0));
    Envelope { version, at, term: None, cause: None, rpc_id: None, command }
}

/// A command to a tenant, in its first epoch.
pub const fn tenant_envelope(tenant: TenantId, command: TenantCommand) -> Envelope {
    envelope(Command::Tenant { tenant, epoch: Epoch(1), command })
}

/// A command to a tenant that carries a text.
pub fn text_envelope(tenant: TenantId, text: impl Into<String>) -> Envelope {
    let (run, reason) = (RunId::from_uuid(Uuid::nil()), Some(text.into()));
    tenant_envelope(tenant, TenantCommand::CancelRun(CancelRun { run, reason }))
}
