//! Every command of the control plane in any order, written down and loaded again at any moment.

use proptest::prelude::*;

use super::*;
use crate::command::{
    AdmitMember, AssignReplicas, ConfirmTenant, CreateJoinToken, DeleteTenant, DrainMember, Found,
    LeaderElected, MemberOffline, MoveStep, PlaceGroups, RegisterNode, RemoveJoinToken, RemoveNode,
    StepMove, UpdateTenant,
};
use crate::domain::ids::Epoch;
use crate::domain::json::Json;
use crate::domain::secret::SecretHash;
use crate::domain::tenant::Quota;
use crate::domain::time::Pause;
use crate::state::reload::{self, Dice, dice};

fn token(n: u8) -> TokenId {
    TokenId::from_uuid(Uuid::from_u128(1 + u128::from(n % 3)))
}

fn some_member(a: u8, b: u8) -> Member {
    let n = 1 + u64::from(a % 6);
    Member {
        raft_id: RaftId(n.max(u64::from(b % 8))),
        node_addr: format!("n{}", b % 3),
        region: ["default", "eu"][usize::from(b % 2)].into(),
        ..member(n)
    }
}

/// Kinds of dice that the commands of version 2 are made of.
const KINDS_OF_VERSION_2: u8 = 20;

/// All kinds of dice.
const KINDS: u8 = 24;

/// A command by its dice; `at` is what the proposer's clock says.
fn command(index: u64, at: i64, (kind, a, b, c, ..): Dice, kinds: u8) -> SystemCommand {
    let id = |n: u8| tenant(2 + u128::from(n % 6));
    let idempotency =
        (c.is_multiple_of(3)).then_some(Idempotency { key: [b % 8; 16], body: [c % 2; 16] });
    let if_version = (c.is_multiple_of(4)).then_some(u64::from(c % 5));
    match kind % kinds {
        0 => SystemCommand::Found(Found {
            authority: authority(9, a, 2),
            member: member(1),
            public_key: [1; 32],
            secret_hash: (b.is_multiple_of(2)).then_some(SecretHash::new([b; 32])),
        }),
        1..4 => SystemCommand::AdmitMember(AdmitMember {
            member: some_member(a, b),
            public_key: [a % 6 + c % 8 / 7; 32],
            token: (!b.is_multiple_of(3)).then(|| token(b / 3)),
        }),
        4 => SystemCommand::RegisterMember(some_member(a, b)),
        5 => SystemCommand::MemberOffline(MemberOffline { node: node(1 + u128::from(a % 6)) }),
        6 => SystemCommand::DrainMember(DrainMember { node: node(1 + u128::from(a % 6)) }),
        7..9 => SystemCommand::CreateJoinToken(CreateJoinToken {
            id: token(a),
            token: JoinToken {
                secret_hash: SecretHash::new([b; 32]),
                expires_at: (b.is_multiple_of(2)).then_some(Timestamp(at + i64::from(b) * 100_000)),
                uses_left: (c.is_multiple_of(2)).then_some(u32::from(c % 3)),
                created_at: Timestamp(at),
            },
            idempotency,
        }),
        9 => SystemCommand::RemoveJoinToken(RemoveJoinToken { id: token(a) }),
        10 => SystemCommand::RegisterNode(RegisterNode {
            node: node(100 + u128::from(index)),
            address: "a".into(),
            region: "r".into(),
            metadata: BTreeMap::new(),
            idempotency,
        }),
        11 => {
            let member = 1 + u128::from(a % 6);
            let over_http = 100 + u128::from(index.saturating_sub(u64::from(b % 16)));
            SystemCommand::RemoveNode(RemoveNode {
                node: node(if c.is_multiple_of(2) { member } else { over_http }),
            })
        }
        12 => SystemCommand::LeaderElected(LeaderElected { node: node(1 + u128::from(a % 3)) }),
        13 => SystemCommand::PlaceGroups(PlaceGroups {
            region: ["default", "eu"][usize::from(a % 2)].into(),
            groups: vec![GroupId(1 + u32::from(a % 2) * 2), GroupId(2 + u32::from(a % 2) * 2)],
            members: vec![RaftId(1 + u64::from(b % 4))],
        }),
        14 => {
            let region = ["default", "eu", "us"][usize::from(a % 3)];
            let key = idempotency.map(|call| (call.key[0], call.body[0]));
            // Ids are given once.
            create(1_000 + u128::from(index), region, b.is_multiple_of(2), key)
        }
        15 => SystemCommand::UpdateTenant(UpdateTenant {
            tenant: id(a),
            change: TenantChange {
                name: (b.is_multiple_of(2)).then(|| format!("n{c}")),
                quotas: if b.is_multiple_of(3) {
                    vec![(Quota::Routines, None)]
                } else {
                    Vec::new()
                },
                region: match kinds {
                    KINDS_OF_VERSION_2 => (b.is_multiple_of(5)).then(|| "us".into()),
                    _ => (!b.is_multiple_of(4))
                        .then(|| ["default", "eu", "us"][usize::from(b % 3)].into()),
                },
                ..TenantChange::default()
            },
            if_version,
        }),
        16 => SystemCommand::DeleteTenant(DeleteTenant { tenant: id(a), if_version }),
        17 => {
            SystemCommand::ConfirmTenant(ConfirmTenant { tenant: id(a), version: u64::from(b % 6) })
        }
        20 => SystemCommand::AssignReplicas(AssignReplicas {
            group: GroupId(1 + u32::from(a % 4)),
            replicas: (0..c % 3).map(|n| RaftId(1 + u64::from((b % 4 + n) % 4))).collect(),
        }),
        21 => SystemCommand::Recover(Recover {
            authority: authority(c.into(), c, c),
            raft_id: RaftId(1 + u64::from(a % 3)),
            groups: (1..4).filter(|group| b >> group & 1 == 1).map(GroupId).collect(),
        }),
        22 => SystemCommand::StepMove(StepMove {
            tenant: id(a),
            epoch: Epoch(2 + u64::from(b % 4)),
            step: [
                MoveStep::Retry,
                MoveStep::Commit,
                MoveStep::Commit,
                MoveStep::Abort,
                MoveStep::Finish,
                MoveStep::Finish,
            ][usize::from(c % 6)],
        }),
        23 => SystemCommand::UpdateTenant(UpdateTenant {
            tenant: id(a),
            change: TenantChange {
                region: Some(["default", "eu"][usize::from(b % 2)].into()),
                ..TenantChange::default()
            },
            if_version: None,
        }),
        _ => SystemCommand::Lock(reload::lock(a, b, c, Json::null(), None)),
    }
}

/// The entries that dice make. The first ones make a cluster with some tenants to change.
fn script(dice: &[(Dice, bool)], kinds: u8) -> Vec<reload::Scripted> {
    let mut at = 1_000_000_000;
    let founding = |index| match index {
        1 => Some(found()),
        2 => Some(place()),
        3..9 => Some(create(u128::from(index) - 1, "default", true, None)),
        _ => None,
    };
    let entry = |(index, (dice, reload)): (u64, &(Dice, bool))| {
        let before = at;
        at += dice.4;
        let command = match (founding(index), dice.0) {
            (Some(command), _) => command,
            (None, 250..) => {
                let since = Timestamp(before + i64::from(dice.1 % 2));
                SystemCommand::TimePassed(Pause { since, ms: u64::from(dice.2) * 1_000_000 })
            }
            (None, _) => command(index, at, *dice, kinds),
        };
        let envelope = Envelope {
            at: Timestamp(at),
            rpc_id: (dice.5 && index > 8).then(|| reload::rpc_id(index, dice)),
            ..envelope(command)
        };
        (envelope, *reload)
    };
    (1..).zip(dice).map(entry).collect()
}

/// What is not the same in two states that have nothing to write down.
fn differ(a: &SystemState, b: &SystemState) -> Option<String> {
    let same = [
        ("meta", a.meta == b.meta),
        ("time", a.time == b.time),
        ("tenants", a.tenants == b.tenants),
        ("by_creation", a.by_creation == b.by_creation),
        ("unconfirmed", a.unconfirmed == b.unconfirmed),
        ("moves", a.moves == b.moves),
        ("nodes", a.nodes == b.nodes),
        ("groups", a.groups == b.groups),
        ("locks", a.locks == b.locks),
        ("calls", a.calls == b.calls),
        ("completions", a.completions == b.completions),
        ("authority", a.authority == b.authority),
        ("tokens", a.tokens == b.tokens),
        ("tokens_born", a.tokens_born == b.tokens_born),
        ("admin_token", a.admin_token == b.admin_token),
        ("tenants_bytes", a.tenants_bytes == b.tenants_bytes),
        ("http_nodes_bytes", a.http_nodes_bytes == b.http_nodes_bytes),
    ];
    same.into_iter().find(|(_, is_same)| !is_same).map(|(what, _)| what.to_owned())
}

/// What [`reload::digest`] makes of the scripts.
const DIGEST: &str = "cf565564926ed232a783bb5c9bcdb00d53890cdffc99196a1b3acd0914413371";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// A state that is written down and loaded again at any moment goes on with the same outcomes,
    /// effects and rows as one that never was.
    #[test]
    fn a_reload_changes_nothing(dice in prop::collection::vec(dice(), 1..150)) {
        reload::run::<SystemState>(&script(&dice, KINDS), differ);
    }
}

#[test]
fn bytes_that_are_on_disks_stay_as_they_are() {
    assert_eq!(reload::digest::<SystemState>(|dice| script(dice, KINDS_OF_VERSION_2)), DIGEST);
}

/// The dice reach every kind of outcome: else the property above would say little.
#[test]
fn the_script_reaches_what_it_is_to_test() {
    reload::check_reach::<SystemState>(
        128,
        |dice| script(dice, KINDS),
        differ,
        &[
            "Tenant",
            "Tenant again",
            "Node",
            "Node again",
            "Token",
            "Token again",
            "Admitted",
            "Done",
            "Ignored",
            "Locked",
            "HeldByOther",
            "Released",
            "LockLost",
            "IdempotencyKeyReused",
            "TenantNotFound",
            "PreconditionFailed",
            "NodeNotFound",
            "TokenNotFound",
            "TokenInvalid",
            "NotAMember",
            "WouldLoseQuorum",
            "UnknownRegion",
            "Moving",
        ],
    );
}
