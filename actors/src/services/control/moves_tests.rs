//! The protocol of moves over the real state machines, in any order: leaders of the source that come and go, messages
//! that are late or come twice, clients with old directories, replicas that are loaded again.
//!
//! What is checked: at no moment two groups would take a write, every write that was acknowledged is in the one place
//! where the tenant is in the end, the events are one history, and nothing is left elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use uuid::Uuid;

use super::copying::Copied;
use crate::command::{
    AdmitMember, Command, ConfirmTenant, CreateTenant, DeleteTenant, MoveStep, MoveTenant,
    MovedPiece, Outcome, PlaceGroups, SetTenant, StartRun, StepMove, SystemCommand, TenantCommand,
    UpdateTenant, WorkflowSource,
};
use crate::domain::ids::{Epoch, GroupId, Position, RaftId, RunId, TenantId};
use crate::domain::json::Json;
use crate::domain::membership::Member;
use crate::domain::tenant::{Quotas, TenantChange, TenantRecord};
use crate::domain::workflow::spec;
use crate::ports::DumpPart;
use crate::state::system::{MovePhase, SystemState, TenantMove, tests as samples};
use crate::state::tenant::TenantState;
use crate::state::{RowBuffer, StateMachine};
use crate::testing::{envelope, member, tenant, tenant_record};

const GROUPS: [(GroupId, &str); 2] = [(GroupId(1), "default"), (GroupId(2), "eu")];

/// The tenant that moves.
const TENANT: TenantId = tenant(2);

fn run(n: u64) -> RunId {
    RunId::from_uuid(Uuid::from_u128(n.into()))
}

/// One group's replica of the tenant, as `ReplicaRunner` runs it.
#[derive(Default)]
struct Replica {
    state: TenantState,
    rows: RowBuffer,
    events: Vec<u8>,
    index: u64,
}

impl Replica {
    fn apply(&mut self, epoch: Epoch, command: TenantCommand) -> Outcome {
        self.index += 1;
        let command = Command::Tenant { tenant: TENANT, epoch, command };
        let envelope = envelope(command);
        let position = Position { term: 1, index: self.index };
        if self.state.is_loaded_by(&envelope) {
            self.write_down();
            self.state = TenantState::load_for(&self.rows, position).unwrap();
        }
        let (outcome, _) = self.state.apply(position, &envelope);
        if self.state.take_reset() {
            (self.rows, self.events) = (RowBuffer::default(), Vec::new());
        }
        self.events.extend(self.state.take_events());
        self.rows.put(self.state.take_final_rows());
        outcome
    }

    fn write_down(&mut self) {
        self.events.extend(self.state.take_events());
        let rows = [self.state.take_final_rows(), self.state.take_dirty_rows()];
        if self.state.needs_files() {
            let [settled, dirty] = rows;
            self.rows.put(settled);
            self.rows.put(dirty);
        } else {
            (self.rows, self.events) = (RowBuffer::default(), Vec::new());
        }
    }

    /// Starts again from its files. What is in memory only is lost.
    fn load_again(&mut self) {
        self.write_down();
        self.state = TenantState::load(&self.rows).unwrap();
    }

    /// What it holds, the events from a byte on, in parts of two rows.
    fn dump(&mut self, events_from: u64) -> Vec<DumpPart> {
        self.write_down();
        let rows = self.rows.scan(&[0], &[u8::MAX; 2], 1_000_000, false).unwrap();
        let from = usize::try_from(events_from).unwrap().min(self.events.len());
        let of_rows = |rows: &[_]| DumpPart { rows: rows.to_vec(), events: Vec::new() };
        let events = DumpPart { rows: Vec::new(), events: self.events[from..].to_vec() };
        rows.chunks(2).map(of_rows).chain([events]).collect()
    }
}

/// Where a leader of the source has come to in an attempt.
#[derive(Default)]
struct Leader {
    attempt: Option<(TenantMove, Epoch)>,
    copied: Copied,
    is_frozen: bool,
    is_sent: bool,
}

/// A message that may come late, and more than once.
type Late = (GroupId, Epoch, MoveTenant);

struct World {
    system: SystemState,
    index: u64,
    replicas: BTreeMap<GroupId, Replica>,
    leaders: [Leader; 2],
    /// Which of them the source's group has.
    leads: usize,
    late: Vec<Late>,
    /// Where clients believe the tenant to be: all places that it ever had.
    places: Vec<(GroupId, Epoch)>,
    acknowledged: BTreeSet<u64>,
    next_run: u64,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            system: SystemState::default(),
            index: 0,
            replicas: GROUPS.iter().map(|(group, _)| (*group, Replica::default())).collect(),
            leaders: Default::default(),
            leads: 0,
            late: Vec::new(),
            places: Vec::new(),
            acknowledged: BTreeSet::new(),
            next_run: 100,
        };
        for (n, (group, region)) in (1..).zip(GROUPS) {
            let member = Member { region: region.into(), ..member(n) };
            let public_key = [u8::try_from(n).unwrap(); 32];
            world.system(match n {
                1 => samples::found(),
                _ => SystemCommand::AdmitMember(AdmitMember { member, public_key, token: None }),
            });
            let place = PlaceGroups {
                region: region.into(),
                groups: vec![group],
                members: vec![RaftId(n)],
            };
            assert_eq!(world.system(SystemCommand::PlaceGroups(place)), Outcome::Done);
        }
        let quotas = Quotas { max_concurrent_workflows: None, ..Quotas::default() };
        world.system(SystemCommand::CreateTenant(CreateTenant {
            tenant: TENANT,
            record: TenantRecord { quotas, ..tenant_record() },
            strict_region: true,
            fallback_region: "default".into(),
            idempotency: None,
        }));
        world.tell();
        world
    }

    fn system(&mut self, command: SystemCommand) -> Outcome {
        self.index += 1;
        let position = Position { term: 1, index: self.index };
        let (outcome, _) = self.system.apply(position, &envelope(Command::System(command)));
        if let Some(entry) = self.system.tenant(TENANT)
            && self.places.last() != Some(&(entry.group, entry.epoch))
        {
            self.places.push((entry.group, entry.epoch));
        }
        outcome
    }

    fn step(&mut self, epoch: Epoch, step: MoveStep) -> bool {
        let step = StepMove { tenant: TENANT, epoch, step };
        self.system(SystemCommand::StepMove(step)) == Outcome::Done
    }

    fn group(&mut self, group: GroupId, epoch: Epoch, command: TenantCommand) -> Outcome {
        self.replicas.get_mut(&group).unwrap().apply(epoch, command)
    }

    fn told(&mut self, (group, epoch, command): Late) -> bool {
        self.group(group, epoch, TenantCommand::Move(command)) == Outcome::Done
    }

    /// Tells the tenant's group what group 0 says, as `sync_tenant` does.
    fn tell(&mut self) {
        let entry = self.system.tenant(TENANT).unwrap().clone();
        let set = SetTenant { version: entry.version, record: entry.record };
        let outcome = self.group(entry.group, entry.epoch, TenantCommand::Set(set));
        if outcome == Outcome::Done {
            let confirm = ConfirmTenant { tenant: TENANT, version: entry.version };
            self.system(SystemCommand::ConfirmTenant(confirm));
        }
    }

    fn change(&mut self, change: TenantChange) {
        let update = UpdateTenant { tenant: TENANT, change, if_version: None };
        self.system(SystemCommand::UpdateTenant(update));
    }

    fn write(&mut self, place: usize) {
        let (group, epoch) = self.places[place % self.places.len()];
        self.next_run += 1;
        let wait = serde_json::json!({ "steps": [
            { "id": "a", "action": { "type": "wait", "secs": 5 } } ] });
        let workflow = spec::parse(serde_json::from_value(wait).unwrap()).unwrap();
        let start = StartRun {
            run: run(self.next_run),
            work_item: "w".into(),
            workflow: WorkflowSource::Inline(std::sync::Arc::new(workflow)),
            input: Json::from_value(&"i".repeat(40).into()),
            idempotency: None,
        };
        if let Outcome::Run(_) = self.group(group, epoch, TenantCommand::StartRun(start)) {
            self.acknowledged.insert(self.next_run);
        }
    }

    /// Takes the next step of a leader, or of a former one.
    fn lead(&mut self, by: usize, is_late: bool) {
        let Some(it) = self.system.tenant_move(TENANT).cloned() else { return };
        match it.phase {
            MovePhase::Copying => self.copy(by, it),
            MovePhase::Leaving => {
                self.tell();
                self.finish(it.epoch, vec![(it.from, it.epoch, MoveTenant::Leave)], is_late);
            }
            MovePhase::Undoing => {
                let thaw = (it.from, Epoch(it.epoch.0 + 1), MoveTenant::Thaw);
                let discard = (it.to, it.epoch, MoveTenant::Discard);
                self.finish(it.epoch, vec![thaw, discard], is_late);
            }
            MovePhase::Over => {}
        }
    }

    fn finish(&mut self, epoch: Epoch, messages: Vec<Late>, is_late: bool) {
        self.late.extend(messages.iter().cloned());
        if !is_late && messages.into_iter().all(|message| self.told(message)) {
            self.step(epoch, MoveStep::Finish);
        }
    }

    fn copy(&mut self, by: usize, it: TenantMove) {
        let mut leader = std::mem::take(&mut self.leaders[by]);
        let leads = self.leads == by;
        match leader.attempt.clone() {
            None => {
                let epoch = Epoch(it.epoch.0 + 1);
                // Only who leads can tell the source here.
                if leads && self.step(it.epoch, MoveStep::Retry) {
                    self.told((it.from, epoch, MoveTenant::Thaw));
                    leader.attempt = Some((it, epoch));
                }
            }
            Some((it, epoch)) if !leader.is_frozen => {
                if self.send(&it, epoch, &mut leader.copied, false) {
                    leader.is_frozen = leads && self.told((it.from, epoch, MoveTenant::Freeze));
                } else {
                    leader = Leader::default();
                }
            }
            Some((it, epoch)) if !leader.is_sent => {
                leader.is_sent = self.send(&it, epoch, &mut leader.copied, true);
            }
            // Whatever has happened since: group 0 decides.
            Some((_, epoch)) => {
                self.step(epoch, MoveStep::Commit);
                leader = Leader::default();
            }
        }
        self.leaders[by] = leader;
    }

    fn send(&mut self, it: &TenantMove, epoch: Epoch, copied: &mut Copied, is_last: bool) -> bool {
        let dump = self.replicas.get_mut(&it.from).unwrap().dump(copied.held().events);
        copied.begin();
        let mut pieces: Vec<MovedPiece> = Vec::new();
        for part in dump {
            pieces.extend(copied.take(part).unwrap());
        }
        pieces.extend(copied.end(is_last));
        pieces.into_iter().all(|piece| {
            // Some come twice, now and later.
            if piece.number % 2 == 0 {
                self.late.push((it.to, epoch, MoveTenant::TakeIn(piece.clone())));
            }
            self.told((it.to, epoch, MoveTenant::TakeIn(piece)))
        })
    }

    fn check(&self) {
        let serving = self.replicas.iter().filter(|(_, it)| it.state.epoch().is_some());
        let serving: Vec<_> = serving.map(|(group, it)| (*group, it.state.epoch())).collect();
        assert!(serving.len() <= 1, "two owners: {serving:?}");
    }

    fn act(&mut self, (kind, a): (u8, u8)) {
        match kind % 16 {
            0..4 => self.write(a.into()),
            4..9 => self.lead(usize::from(a % 2), a > 200),
            9 => self.leads = usize::from(a % 2),
            10 => self.leaders[usize::from(a % 2)] = Leader::default(),
            11 if !self.late.is_empty() => {
                let message = self.late[usize::from(a) % self.late.len()].clone();
                self.told(message);
            }
            12 => self.tell(),
            13 => self.replicas.get_mut(&GROUPS[usize::from(a % 2)].0).unwrap().load_again(),
            14 => {
                let region = Some(GROUPS[usize::from(a % 2)].1.into());
                self.change(TenantChange { region, ..TenantChange::default() });
            }
            15 => {
                let name = Some(format!("n{a}"));
                self.change(TenantChange { name, ..TenantChange::default() });
            }
            _ => {}
        }
        self.check();
    }

    /// Lets the leader go on alone until nothing is left to be done.
    fn settle(&mut self) {
        self.leaders = Default::default();
        for _ in 0..40 {
            self.lead(self.leads, false);
            self.tell();
            self.check();
        }
        let last = self.system.tenant_move(TENANT).cloned();
        let entry = self.system.tenant(TENANT).unwrap().clone();
        // What each node does with files of a tenant that lives elsewhere: a piece may come after all is over,
        // to a replica that was loaded again and does not know.
        let copy = last.as_ref().map_or(entry.epoch, |it| it.epoch);
        for (group, _) in GROUPS.into_iter().filter(|(group, _)| *group != entry.group) {
            self.told((group, copy, MoveTenant::Discard));
            self.told((group, entry.epoch, MoveTenant::Leave));
        }
        assert!(last.as_ref().is_none_or(|it| !it.is_under_way()), "{last:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_tenant_is_in_one_place_whatever_comes_when(
        acts in prop::collection::vec((any::<u8>(), any::<u8>()), 1..200),
        is_deleted in prop::bool::weighted(0.2),
    ) {
        let mut world = World::new();
        for act in acts {
            world.act(act);
        }
        if is_deleted {
            let delete = DeleteTenant { tenant: TENANT, if_version: None };
            world.system(SystemCommand::DeleteTenant(delete));
        }
        world.settle();
        let entry = world.system.tenant(TENANT).unwrap().clone();
        for (group, replica) in &mut world.replicas {
            if *group != entry.group || is_deleted {
                prop_assert!(!replica.state.needs_files(), "something is left in {group}");
                continue;
            }
            prop_assert_eq!(replica.state.record(), entry.record.as_ref());
            prop_assert_eq!(replica.state.epoch(), Some(entry.epoch));
            let has: BTreeSet<_> = replica.state.runs().keys().copied().collect();
            let acknowledged: BTreeSet<_> = world.acknowledged.iter().map(|n| run(*n)).collect();
            prop_assert_eq!(has, acknowledged);
            let events = replica.dump(0).into_iter().flat_map(|part| part.events);
            let text = String::from_utf8(events.collect()).unwrap();
            for (seq, line) in (1_u64..).zip(text.lines()) {
                let event: serde_json::Value = serde_json::from_str(line).unwrap();
                prop_assert_eq!(&event["seq"], &serde_json::json!(seq), "{}", line);
            }
        }
    }
}

/// The acts above come to whole moves, or the property would say little.
#[test]
fn tenants_do_move_in_the_property_above() {
    let mut world = World::new();
    for region in ["eu", "default", "eu"] {
        world.write(0);
        world.change(TenantChange { region: Some(region.into()), ..TenantChange::default() });
        world.settle();
        let entry = world.system.tenant(TENANT).unwrap();
        assert_eq!(entry.record.as_ref().unwrap().region, region.into());
        world.write(world.places.len() - 1);
    }
    assert!(world.acknowledged.len() >= 4, "{:?}", world.acknowledged);
}
