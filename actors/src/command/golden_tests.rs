//! The bytes of every kind of command, outcome and refusal, as they are in logs and indexes already.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use strum::VariantNames;
use uuid::Uuid;

use super::*;
use crate::domain::ids::{GroupId, JobId, NodeId, RaftId, RunId, TokenId};
use crate::domain::json::Json;
use crate::domain::lock::{FencingToken, LockView};
use crate::domain::membership::{Authority, JoinToken};
use crate::domain::run::{RunStatus, StepAttempt};
use crate::domain::secret::{SecretBytes, SecretHash};
use crate::domain::tenant::{Quota, Quotas, Settings, TenantChange, TenantRecord, TenantStatus};
use crate::domain::workflow::{Workflow, spec};

/// One line a kind: its name, then what it is encoded as.
const GOLDEN: &str = include_str!("golden.txt");

fn text<T: for<'a> From<&'a str>>(text: &str) -> T {
    T::from(text)
}

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n << 64 | n)
}

fn node(n: u128) -> NodeId {
    NodeId::from_uuid(id(n))
}

fn tenant() -> TenantId {
    TenantId::from_uuid(id(2))
}

fn run() -> RunId {
    RunId::from_uuid(id(3))
}

fn job() -> JobId {
    JobId::from_uuid(id(4))
}

fn token() -> TokenId {
    TokenId::from_uuid(id(5))
}

fn json() -> Json {
    Json::from_value(&serde_json::json!({ "a": 1 }))
}

fn idempotency() -> Option<Idempotency> {
    Some(Idempotency { key: [6; 16], body: [7; 16] })
}

fn workflow() -> std::sync::Arc<Workflow> {
    let step = serde_json::json!({ "id": "a", "action": { "type": "set", "output": "x" } });
    let spec = serde_json::json!({ "steps": [step] });
    std::sync::Arc::new(spec::parse(serde_json::from_value(spec).unwrap()).unwrap())
}

fn record() -> TenantRecord {
    TenantRecord {
        name: text("acme"),
        description: text("d"),
        status: TenantStatus::Suspended,
        quotas: Quotas::default(),
        settings: Settings {
            data_retention_days: 90,
            enable_audit_logging: true,
            metadata: json(),
        },
        region: text("eu"),
        created_at: Timestamp(-1),
        updated_at: Timestamp(1 << 40),
    }
}

fn member() -> Member {
    Member {
        node: node(1),
        raft_id: RaftId(300),
        api_addr: text("a"),
        node_addr: text("n"),
        region: text("r"),
        labels: BTreeMap::from([(text("k"), text("v"))]),
        version: text("0"),
    }
}

fn lock() -> LockView {
    LockView {
        key: text("k"),
        holder: text("h"),
        token: FencingToken(8),
        renewal: 9,
        ttl_ms: 1000,
        acquired_at: Timestamp(10),
        expires_at: Timestamp(1010),
        metadata: json(),
    }
}

fn system_commands() -> Vec<SystemCommand> {
    let authority =
        Authority { cluster: id(9), certificate: vec![1, 2], key: SecretBytes::new(vec![3, 4]) };
    let recover = Recover {
        authority: authority.clone(),
        raft_id: RaftId(300),
        groups: vec![GroupId(1), GroupId(2)],
    };
    let join_token = JoinToken {
        secret_hash: SecretHash::new([9; 32]),
        expires_at: Some(Timestamp(5)),
        uses_left: Some(6),
        created_at: Timestamp(7),
    };
    vec![
        SystemCommand::Found(Found {
            authority,
            member: member(),
            public_key: [1; 32],
            secret_hash: Some(SecretHash::new([2; 32])),
        }),
        SystemCommand::AdmitMember(AdmitMember {
            member: member(),
            public_key: [1; 32],
            token: Some(token()),
        }),
        SystemCommand::RegisterMember(member()),
        SystemCommand::MemberOffline(MemberOffline { node: node(1) }),
        SystemCommand::DrainMember(DrainMember { node: node(1) }),
        SystemCommand::CreateJoinToken(CreateJoinToken {
            id: token(),
            token: join_token,
            idempotency: idempotency(),
        }),
        SystemCommand::RemoveJoinToken(RemoveJoinToken { id: token() }),
        SystemCommand::RegisterNode(RegisterNode {
            node: node(1),
            address: text("a"),
            region: text("r"),
            metadata: BTreeMap::from([(text("k"), text("v"))]),
            idempotency: idempotency(),
        }),
        SystemCommand::RemoveNode(RemoveNode { node: node(1) }),
        SystemCommand::LeaderElected(LeaderElected { node: node(1) }),
        SystemCommand::PlaceGroups(PlaceGroups {
            region: text("r"),
            groups: vec![GroupId(1), GroupId(2)],
            members: vec![RaftId(300)],
        }),
        SystemCommand::CreateTenant(CreateTenant {
            tenant: tenant(),
            record: record(),
            strict_region: true,
            fallback_region: text("r"),
            idempotency: idempotency(),
        }),
        SystemCommand::UpdateTenant(UpdateTenant {
            tenant: tenant(),
            change: TenantChange { name: Some(text("b")), ..TenantChange::default() },
            if_version: Some(2),
        }),
        SystemCommand::DeleteTenant(DeleteTenant { tenant: tenant(), if_version: None }),
        SystemCommand::ConfirmTenant(ConfirmTenant { tenant: tenant(), version: 3 }),
        SystemCommand::Lock(lock_commands().remove(0)),
        SystemCommand::TimePassed(Pause { since: Timestamp(1), ms: 2 }),
        SystemCommand::SetAdminToken(SetAdminToken { hash: SecretHash::new([3; 32]) }),
        SystemCommand::AssignReplicas(AssignReplicas {
            group: GroupId(1),
            replicas: vec![RaftId(1), RaftId(300)],
        }),
        SystemCommand::Recover(recover),
        SystemCommand::StepMove(StepMove {
            tenant: tenant(),
            epoch: Epoch(300),
            step: MoveStep::Commit,
        }),
    ]
}

fn lock_commands() -> Vec<LockCommand> {
    let (key, holder) = (|| text("k"), || text("h"));
    vec![
        LockCommand::Acquire { key: key(), holder: holder(), ttl_ms: 1, metadata: json() },
        LockCommand::Renew {
            key: key(),
            holder: holder(),
            token: Some(FencingToken(2)),
            ttl_ms: Some(3),
        },
        LockCommand::Release { key: key(), holder: holder(), token: None },
        LockCommand::Expire { key: key(), token: FencingToken(4), renewal: 5 },
    ]
}

fn tenant_commands() -> Vec<TenantCommand> {
    let attempt = StepAttempt { run: run(), step: 1, number: 2 };
    vec![
        TenantCommand::Set(SetTenant { version: 1, record: Some(record()) }),
        TenantCommand::StartRun(StartRun {
            run: run(),
            work_item: text("w"),
            workflow: WorkflowSource::Named(text("n")),
            input: json(),
            idempotency: idempotency(),
        }),
        TenantCommand::CreateJob(CreateJob {
            job: job(),
            name: text("n"),
            description: Some(text("d")),
            created_by: Some(text("c")),
            workflow: workflow(),
            run: Some(run()),
            idempotency: idempotency(),
        }),
        TenantCommand::CancelRun(CancelRun { run: run(), reason: Some(text("r")) }),
        TenantCommand::PutWorkflow(PutWorkflow {
            name: text("n"),
            workflow: workflow(),
            if_version: Some(0),
        }),
        TenantCommand::DeleteWorkflow(DeleteWorkflow { name: text("n"), if_version: Some(1) }),
        TenantCommand::StepResult(RecordStepResult {
            attempt,
            result: StepResult::Failed { error: text("e"), retry_in_ms: Some(3) },
        }),
        TenantCommand::StepDue(StepDue { attempt }),
        TenantCommand::Lock(lock_commands().remove(3)),
        TenantCommand::TimePassed(Pause { since: Timestamp(1), ms: 2 }),
        TenantCommand::Compare,
        TenantCommand::Move(MoveTenant::TakeIn(MovedPiece {
            number: 300,
            rows: vec![(vec![1], Some(vec![2])), (vec![3], None)],
            begun: vec![4],
            events: vec![5],
            is_last: true,
        })),
    ]
}

fn outcomes() -> Vec<Outcome> {
    vec![
        Outcome::Ignored,
        Outcome::Refused(Refusal::TenantNotFound),
        Outcome::Tenant(TenantKnown { tenant: tenant(), version: 1, replayed: true }),
        Outcome::Node(NodeRegistered { node: node(1), replayed: false }),
        Outcome::Admitted(MemberAdmitted { raft_id: RaftId(300) }),
        Outcome::Token(TokenCreated { token: token(), replayed: true }),
        Outcome::Done,
        Outcome::Run(RunStarted { run: run(), replayed: false }),
        Outcome::Job(JobCreated { job: job(), run: Some(run()), replayed: true }),
        Outcome::Workflow(WorkflowWritten { version: 1, created_at: Timestamp(2) }),
        Outcome::Locked(lock()),
        Outcome::HeldByOther(lock()),
        Outcome::Released(true),
        Outcome::TenantSet(TenantWritten {
            tenant: tenant(),
            version: 1,
            record: Box::new(record()),
        }),
    ]
}

fn refusals() -> Vec<Refusal> {
    vec![
        Refusal::TenantNotFound,
        Refusal::RunNotFound,
        Refusal::JobNotFound,
        Refusal::WorkflowNotFound { name: text("n") },
        Refusal::UnknownWorkflow { name: text("n") },
        Refusal::NodeNotFound,
        Refusal::LockNotFound { key: text("k") },
        Refusal::TenantSuspended,
        Refusal::TenantDisabled,
        Refusal::StaleEpoch,
        Refusal::QuotaExceeded {
            quota: Quota::StorageBytes,
            limit: 1,
            used: 2,
            retry_after_secs: Some(3),
        },
        Refusal::IdempotencyKeyReused,
        Refusal::TooManyKeys { limit: 1 },
        Refusal::PreconditionFailed { current: 1 },
        Refusal::RunEnded { status: RunStatus::Cancelled },
        Refusal::LockLost { key: text("k") },
        Refusal::ReservedKey,
        Refusal::NodeIsMember,
        Refusal::TokenNotFound,
        Refusal::TokenInvalid { why: text("w") },
        Refusal::NotAMember,
        Refusal::WouldLoseQuorum { groups: 1 },
        Refusal::NoOtherCandidate,
        Refusal::UnknownRegion { region: text("r") },
        Refusal::CannotMove { region: text("r") },
        Refusal::TooMany { what: text("w"), limit: 1 },
        Refusal::OtherAdminToken,
        Refusal::MemoryLimit { limit: 1, used: 2 },
        Refusal::Moving { region: text("r") },
    ]
}

fn envelope(command: Command) -> Envelope {
    Envelope {
        version: 2,
        at: Timestamp(1 << 40),
        term: Some(4),
        cause: Some(Cause { who: text("admin"), request_id: text("r") }),
        rpc_id: Some(RpcId { incarnation: 1, sequence: 2, first_incomplete: 3 }),
        command,
    }
}

/// Lines of `values`, which must be of all kinds, in their order.
fn lines<T: VariantNames + Serialize>(lines: &mut String, of: &str, values: &[T]) {
    assert_eq!(values.len(), T::VARIANTS.len(), "one of each kind of {of}");
    for (index, (name, value)) in T::VARIANTS.iter().zip(values).enumerate() {
        let bytes = codec::encode(value);
        assert_eq!(usize::from(bytes[0]), index, "{of}::{name}");
        writeln!(lines, "{of}::{name} {}", hex::encode(bytes)).unwrap();
    }
}

#[test]
fn bytes_that_are_in_logs_stay_as_they_are() {
    let mut now = String::new();
    lines(&mut now, "SystemCommand", &system_commands());
    lines(&mut now, "LockCommand", &lock_commands());
    lines(&mut now, "TenantCommand", &tenant_commands());
    lines(&mut now, "Outcome", &outcomes());
    lines(&mut now, "Refusal", &refusals());
    let to_the_cluster = envelope(Command::System(system_commands().remove(3)));
    let command = tenant_commands().remove(3);
    let to_a_tenant = envelope(Command::Tenant { tenant: tenant(), epoch: Epoch(5), command });
    for envelope in [to_the_cluster, to_a_tenant] {
        let bytes = codec::encode(&envelope);
        assert_eq!(Envelope::decode(&bytes), Ok(envelope));
        writeln!(now, "Envelope {}", hex::encode(bytes)).unwrap();
    }
    for (index, (now, golden)) in now.lines().zip(GOLDEN.lines()).enumerate() {
        assert_eq!(now, golden, "line {}", index + 1);
    }
    assert_eq!(now.len(), GOLDEN.len(), "{now}");
}
