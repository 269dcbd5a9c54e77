//! What is shown of commands, and which versions are read.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::domain::ids::{NodeId, RaftId, RunId, TokenId};
use crate::domain::json::Json;
use crate::domain::membership::{Authority, JoinToken};
use crate::domain::run::StepAttempt;
use crate::domain::secret::{SecretBytes, SecretHash};
use crate::domain::workflow::{Workflow, spec};

/// Planted in every text and payload of a command.
const PLANTED: &str = "planted-secret";

fn workflow() -> Arc<Workflow> {
    let spec = serde_json::json!({ "steps": [{ "id": "a", "action": {
        "type": "http", "method": "GET", "url": "http://localhost/",
        "headers": { "authorization": format!("Bearer {PLANTED}") } } }] });
    Arc::new(spec::parse(serde_json::from_value(spec).expect("a spec")).expect("a workflow"))
}

fn system() -> Vec<SystemCommand> {
    let node = NodeId::from_uuid(Uuid::from_u128(1));
    let text = || PLANTED.to_owned();
    let hash = SecretHash::new(*b"planted-secret-of-32-bytes-000000".first_chunk().unwrap());
    let labels = BTreeMap::from([(text(), text())]);
    let member = Member {
        node,
        raft_id: RaftId(1),
        api_addr: text(),
        node_addr: text(),
        region: PLANTED.into(),
        labels: labels.clone(),
        version: text(),
    };
    let authority = Authority {
        cluster: Uuid::from_u128(1),
        certificate: PLANTED.into(),
        key: SecretBytes::new(PLANTED.into()),
    };
    let token = JoinToken {
        secret_hash: hash,
        expires_at: None,
        uses_left: None,
        created_at: Timestamp(0),
    };
    let acquire = LockCommand::Acquire {
        key: PLANTED.into(),
        holder: PLANTED.into(),
        ttl_ms: 1,
        metadata: Json::from_value(&serde_json::json!(PLANTED)),
    };
    vec![
        SystemCommand::Found(Found {
            authority,
            member: member.clone(),
            public_key: [0; 32],
            secret_hash: Some(hash),
        }),
        SystemCommand::AdmitMember(AdmitMember {
            member: member.clone(),
            public_key: [0; 32],
            token: None,
        }),
        SystemCommand::RegisterMember(member),
        SystemCommand::CreateJoinToken(CreateJoinToken {
            id: TokenId::from_uuid(Uuid::nil()),
            token,
            idempotency: None,
        }),
        SystemCommand::RegisterNode(RegisterNode {
            node,
            address: text(),
            region: PLANTED.into(),
            metadata: labels,
            idempotency: None,
        }),
        SystemCommand::Lock(acquire),
        SystemCommand::SetAdminToken(SetAdminToken { hash }),
    ]
}

fn tenant() -> Vec<TenantCommand> {
    let run = RunId::from_uuid(Uuid::from_u128(2));
    let attempt = StepAttempt { run, step: 0, number: 1 };
    let json = || Json::from_value(&serde_json::json!({ "password": PLANTED }));
    vec![
        TenantCommand::StartRun(StartRun {
            run,
            work_item: PLANTED.to_owned(),
            workflow: WorkflowSource::Inline(workflow()),
            input: json(),
            idempotency: None,
        }),
        TenantCommand::PutWorkflow(PutWorkflow {
            name: PLANTED.to_owned(),
            workflow: workflow(),
            if_version: None,
        }),
        TenantCommand::CancelRun(CancelRun { run, reason: Some(PLANTED.to_owned()) }),
        TenantCommand::StepResult(RecordStepResult {
            attempt,
            result: StepResult::Succeeded { output: json() },
        }),
        TenantCommand::StepResult(RecordStepResult {
            attempt,
            result: StepResult::Failed { error: PLANTED.to_owned(), retry_in_ms: None },
        }),
    ]
}

#[test]
fn an_entry_is_shown_by_its_kind_alone() {
    let tenant_id = TenantId::from_uuid(Uuid::from_u128(3));
    let of_tenants = tenant().into_iter().map(|command| {
        let kind: &'static str = (&command).into();
        (kind, Command::Tenant { tenant: tenant_id, epoch: Epoch(1), command })
    });
    let of_the_cluster = system().into_iter().map(|command| {
        let kind: &'static str = (&command).into();
        (kind, Command::System(command))
    });
    for (kind, command) in of_tenants.chain(of_the_cluster) {
        let cause = Cause { who: PLANTED.to_owned(), request_id: PLANTED.to_owned() };
        let envelope = Envelope {
            version: COMMAND_VERSION,
            at: Timestamp(0),
            term: None,
            cause: Some(cause),
            rpc_id: None,
            command,
        };
        for shown in [
            envelope.to_string(),
            format!("{envelope:?}"),
            format!("{envelope:#?}"),
            format!("{:?}", envelope.command),
        ] {
            assert!(shown.contains(kind), "{shown}");
            let bytes = format!("{:?}", PLANTED.as_bytes());
            let bytes = bytes.trim_matches(['[', ']']);
            assert!(!shown.contains("planted") && !shown.contains(bytes), "{shown}");
        }
    }
}

fn envelope(version: u16) -> Envelope {
    let command = Command::System(SystemCommand::RemoveJoinToken(RemoveJoinToken {
        id: TokenId::from_uuid(Uuid::from_u128(1)),
    }));
    Envelope { version, at: Timestamp(0), term: None, cause: None, rpc_id: None, command }
}

#[test]
fn a_later_version_is_named_and_never_decoded() {
    for version in 1..=COMMAND_VERSION {
        let bytes = codec::encode(&envelope(version));
        assert_eq!(Envelope::decode(&bytes), Ok(envelope(version)));
    }
    for version in [COMMAND_VERSION + 1, 300, u16::MAX] {
        let bytes = codec::encode(&envelope(version));
        let error = Envelope::decode(&bytes).unwrap_err();
        assert!(matches!(error, DecodeError::TooNew { .. }), "{error}");
        // Whatever shape stands behind it.
        let bytes = codec::encode(&(version, "of another shape"));
        assert_eq!(Envelope::decode(&bytes), Err(error));
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = Envelope::decode(&bytes);
    }
}
