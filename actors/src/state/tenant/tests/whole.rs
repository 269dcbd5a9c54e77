//! Every command of a tenant in any order, written down and loaded again at any moment.

use proptest::prelude::*;

use super::*;
use crate::command::{
    COMMAND_VERSION, CancelRun, CreateJob, DeleteWorkflow, PutWorkflow, RecordStepResult,
    SetTenant, StartRun, StepDue,
};
use crate::domain::time::Pause;
use crate::state::reload::{self, Dice, dice};
use crate::testing::tenant_envelope;

fn set(a: u8, b: u8, version: u64) -> TenantCommand {
    let statuses = [TenantStatus::Active, TenantStatus::Active, TenantStatus::Suspended];
    let quotas = Quotas {
        max_concurrent_workflows: Some(u64::from(b % 8)),
        max_workflows_per_day: Some(u64::from(b % 16)),
        max_storage_bytes: (b.is_multiple_of(5)).then_some(20_000),
        ..Quotas::default()
    };
    let quotas = if b.is_multiple_of(3) { quotas } else { Quotas::default() };
    let mut record = record(statuses[usize::from(a % 3)], quotas);
    record.settings.enable_audit_logging = b.is_multiple_of(2);
    TenantCommand::Set(SetTenant { version, record: (a != 255).then_some(record) })
}

fn command(index: u64, (kind, a, b, c, ..): Dice) -> TenantCommand {
    // Ids are given once; what is asked of a run is asked of one of the last few.
    let new = u128::from(index);
    let known = run(new.saturating_sub(1 + u128::from(a % 12)));
    let key = |n: u8| {
        (n.is_multiple_of(3)).then_some(Idempotency { key: [n % 16; 16], body: [c % 2; 16] })
    };
    let (step, number) = (u16::from(b % 5), u32::from(b / 5 % 2) + 1);
    let attempt = StepAttempt { run: known, step, number };
    let name = ["v", "w"][usize::from(a % 2)].to_owned();
    let if_version = (c.is_multiple_of(4)).then_some(u64::from(c % 3));
    let result = |result| TenantCommand::StepResult(RecordStepResult { attempt, result });
    match kind % 16 {
        0..3 => TenantCommand::StartRun(StartRun {
            run: run(new),
            work_item: "w".into(),
            workflow: match a % 4 {
                0 => WorkflowSource::Named(name),
                _ => WorkflowSource::Inline(diamond(2)),
            },
            input: Json::from_value(&"i".repeat(usize::from(c)).into()),
            idempotency: key(b),
        }),
        3 => TenantCommand::CreateJob(CreateJob {
            job: job(new),
            name,
            description: (a.is_multiple_of(2)).then(|| "d".into()),
            created_by: None,
            workflow: diamond(1),
            run: (b.is_multiple_of(2)).then(|| run(new)),
            idempotency: key(c),
        }),
        4..7 => result(StepResult::Succeeded { output: Json::from_value(&c.into()) }),
        7 => {
            let retry_in_ms = (!c.is_multiple_of(3)).then_some(u64::from(c));
            result(StepResult::Failed { error: "no".into(), retry_in_ms })
        }
        8 => result(StepResult::WaitsUntil { due_at: Timestamp(i64::from(c) * 50) }),
        9 => TenantCommand::StepDue(StepDue { attempt }),
        10 => TenantCommand::CancelRun(CancelRun { run: known, reason: None }),
        11 => TenantCommand::PutWorkflow(PutWorkflow {
            name,
            workflow: diamond(u32::from(b % 3) + 1),
            if_version,
        }),
        12 => TenantCommand::DeleteWorkflow(DeleteWorkflow { name, if_version }),
        13 => set(a, b, index),
        _ => {
            let metadata = Json::from_value(&"m".repeat(usize::from(c)).into());
            TenantCommand::Lock(reload::lock(a, b, c, metadata, (b > 128).then_some(7)))
        }
    }
}

/// The entries that dice make. The first creates the tenant.
fn script(dice: &[(Dice, bool)]) -> Vec<reload::Scripted> {
    let mut at = 1_000_000_000;
    let entry = |(index, (dice, reload)): (u64, &(Dice, bool))| {
        let before = at;
        at += dice.4;
        let command = match (index, dice.0) {
            (1, _) => set(0, 1, 1),
            // Of a pause that begins with the last entry, or with none.
            (_, 250..) => {
                let since = Timestamp(before + i64::from(dice.1 % 2));
                TenantCommand::TimePassed(Pause { since, ms: u64::from(dice.2) * 1_000_000 })
            }
            _ => command(index, *dice),
        };
        let is_set = matches!(command, TenantCommand::Set(_));
        let envelope = Envelope {
            // Runs of an older version go on beside those of this one.
            version: COMMAND_VERSION - u16::from(dice.3.is_multiple_of(4)),
            at: Timestamp(at),
            cause: dice.5.then(|| Cause { who: "admin".into(), request_id: "r".into() }),
            rpc_id: (dice.5 && !is_set).then(|| reload::rpc_id(index, dice)),
            ..tenant_envelope(TENANT, command)
        };
        (envelope, *reload)
    };
    (1..).zip(dice).map(entry).collect()
}

/// What is not the same in two states that have nothing to write down.
fn differ(a: &TenantState, b: &TenantState) -> Option<String> {
    if a.meta.record.is_none() && b.meta.record.is_none() {
        // Its files are gone, and with them which version it was deleted at.
        return None;
    }
    let same = [
        ("meta", a.meta == b.meta),
        ("time", a.time == b.time),
        ("days", a.days == b.days),
        ("payload bytes", a.payload_bytes == b.payload_bytes),
        ("runs", a.runs == b.runs),
        ("due", a.due == b.due),
        ("workflows", a.workflows == b.workflows),
        ("locks", a.locks == b.locks),
        ("calls", a.calls == b.calls),
        ("completions", a.completions == b.completions),
        ("presence", a.presence == b.presence),
    ];
    same.into_iter().find(|(_, is_same)| !is_same).map(|(what, _)| what.to_owned())
}

/// What [`reload::digest`] makes of the scripts.
const DIGEST: &str = "f4c30d5a581c15badc55a45910f832ddd1eb3b8a65f51e1821693174eb4c9c8f";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// A state that is written down and loaded again at any moment goes on with the same outcomes,
    /// effects, events and rows as one that never was.
    #[test]
    fn a_reload_changes_nothing(dice in prop::collection::vec(dice(), 1..150)) {
        reload::run::<TenantState>(&script(&dice), differ);
    }
}

#[test]
fn bytes_that_are_on_disks_stay_as_they_are() {
    assert_eq!(reload::digest::<TenantState>(script), DIGEST);
}

/// The dice reach every kind of outcome: else the property above would say little.
#[test]
fn the_script_reaches_what_it_is_to_test() {
    reload::check_reach::<TenantState>(
        64,
        script,
        differ,
        &[
            "Run",
            "Run again",
            "Job",
            "Job again",
            "Workflow",
            "Locked",
            "HeldByOther",
            "Released",
            "Done",
            "Ignored",
            "LockLost",
            "QuotaExceeded",
            "TenantSuspended",
            "IdempotencyKeyReused",
            "PreconditionFailed",
            "UnknownWorkflow",
            "RunNotFound",
            "WorkflowNotFound",
            "StaleEpoch",
        ],
    );
}
