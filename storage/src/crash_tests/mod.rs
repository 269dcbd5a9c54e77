//! Power is cut, or the program killed, in the middle of every single disk operation of a workload
//! over the whole crate: several groups in one log, their low-water marks, and tenants' files.
//!
//! After each end everything is opened again. It must be what was acknowledged, give or take the
//! one operation under way; and what was found then, another power cut must not take back.

mod life;
mod model;

use std::collections::BTreeMap;
use std::sync::Arc;

use shiioo_actors::domain::ids::{GroupId, StateMachineId, TenantId};
use shiioo_actors::domain::region::Region;
use shiioo_actors::ports::{Store, Stores};
use shiioo_actors::testing;

use crate::disk::SimDisk;
use crate::executor::Executor;
use crate::index::FileStores;
use crate::log::tests::now;
use crate::log::{Log, Op};
use life::{APPLIED, GROUPS, live};
use model::{FileState, GroupModel, Oracle};

/// Seeds, and so ways in which a cut can go, that each operation is tried with.
const SEEDS: u64 = 2;

/// The findings when everything is opened.
#[derive(Debug, PartialEq)]
struct Seen {
    groups: Vec<GroupModel>,
    low_water_mark: Option<u64>,
    files: BTreeMap<TenantId, FileState>,
}

/// The open log and stores. Dropped only once they are fenced: closing them well would write.
type Open = (Arc<Log>, Vec<Box<dyn Store>>);

/// Opens everything and compares.
fn check(disk: &SimDisk, oracle: &Oracle, story: &str) -> (Seen, Open) {
    let mut open = Vec::new();
    let mut seen = Seen { groups: Vec::new(), low_water_mark: None, files: BTreeMap::new() };
    let log = Log::open(disk.mount(), Executor::Inline).unwrap_or_else(|e| panic!("{story}: {e}"));
    for group in (0..GROUPS).map(GroupId) {
        let known = oracle.groups.get(&group).cloned().unwrap_or_default();
        let mut allowed = vec![known.clone()];
        if let Some((under_way, op)) = &oracle.under_way
            && *under_way == group
        {
            let count = if let Op::Append(entries) = op { entries.len() } else { 1 };
            allowed.extend((1..=count).map(|count| known.after(op, count)));
        }
        let found = GroupModel::of(&log, group);
        assert!(
            allowed.contains(&found),
            "{story}, group {group}: {found:#?}\nnot in {allowed:#?}"
        );
        seen.groups.push(found);
    }

    let mark = log.state(APPLIED).low_water_mark.map(|mark| mark.position.index);
    seen.low_water_mark = mark;
    assert!(mark >= oracle.mark_acknowledged, "{story}: the mark went back to {mark:?}");
    assert!(mark <= oracle.mark_known, "{story}: the mark {mark:?} was never known");
    let purged = log.state(APPLIED).purged.map(|purged| purged.index);
    assert!(purged <= mark, "{story}: purged {purged:?} above the mark {mark:?}");

    let files = now(FileStores::open(disk.mount(), Executor::Inline, &Region::default())).unwrap();
    for (&tenant, files_of) in &oracle.files {
        let is_there = files.exists(StateMachineId::Tenant(tenant)).unwrap();
        if let Some((_, is_gone)) = oracle.removed.filter(|(removed, _)| *removed == tenant) {
            assert!(!(is_gone && is_there), "{story}: {tenant} came back");
            if !is_there {
                continue;
            }
        }
        if !is_there {
            assert_eq!(files_of.durable, 0, "{story}: the files of {tenant} are gone");
            continue;
        }
        let store = now(files.open(StateMachineId::Tenant(tenant)));
        let store = store.unwrap_or_else(|error| panic!("{story}, {tenant}: {error}"));
        let found = FileState::of(store.as_ref()).unwrap();
        // The durable write under way may be there, too: it is the last of the states.
        assert!(
            files_of.states[files_of.durable..].contains(&found),
            "{story}, {tenant}: {found:#?}\nnot in {:#?}",
            &files_of.states[files_of.durable..]
        );
        if tenant != testing::tenant(3) {
            let own = |index: u64| index % 2 + 1 == u64::from(tenant == testing::tenant(2)) + 1;
            let missing = (0..=mark.unwrap_or(0)).filter(|_| mark.is_some()).rfind(|i| own(*i));
            let position = found.position.map(|position| position.index);
            assert!(position >= missing, "{story}, {tenant}: at {position:?}, mark {mark:?}");
        }
        seen.files.insert(tenant, found);
        open.push(store);
    }
    (seen, (log, open))
}

/// How a life ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    PowerCut,
    Kill,
}

fn end_and_check(seed: u64, end: End, after: u64) -> bool {
    let disk = SimDisk::new(seed);
    match end {
        End::PowerCut => disk.cut_power_after(after),
        End::Kill => disk.kill_after(after),
    }
    let mut oracle = Oracle::default();
    let result = now(live(&disk, &mut oracle));
    let has_ended = disk.take_ended();
    let story = format!("seed {seed}, {end:?} in operation {after}");
    assert!(has_ended || result.is_ok(), "{story}: {result:?}");
    if !has_ended {
        disk.cut_power();
    }
    let (seen, open) = check(&disk, &oracle, &story);
    // What was found once has been acted upon: no power cut may take it back.
    disk.cut_power();
    drop(open);
    let story = format!("{story}, and a power cut");
    let (again, _open) = check(&disk, &oracle, &story);
    assert_eq!(again, seen, "{story}");
    has_ended
}

#[test]
fn nothing_acknowledged_is_lost_wherever_a_life_ends() {
    let disk = SimDisk::new(0);
    let mut oracle = Oracle::default();
    now(live(&disk, &mut oracle)).unwrap();
    let ops = disk.ops();
    assert!(ops > 200, "the workload has only {ops} operations");
    for (seed, end) in (0..SEEDS).map(|seed| (seed, End::PowerCut)).chain([(0, End::Kill)]) {
        for after in 0..ops {
            assert!(end_and_check(seed, end, after), "operation {after} of {ops} never came");
        }
        assert!(!end_and_check(seed, end, ops), "there are more than {ops} operations");
    }
}

/// The test above must be able to fail: on a disk that ignores every sync it does.
#[test]
fn a_program_that_does_not_sync_is_caught() {
    let caught = (0..20).any(|seed| {
        let disk = SimDisk::new(seed);
        disk.ignore_syncs(true);
        let mut oracle = Oracle::default();
        now(live(&disk, &mut oracle)).unwrap();
        disk.cut_power();
        let check = std::panic::AssertUnwindSafe(|| drop(check(&disk, &oracle, "no syncs")));
        std::panic::catch_unwind(check).is_err()
    });
    assert!(caught);
}
