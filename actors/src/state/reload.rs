//! For tests: a state machine that is written down and loaded again at any moment must go on as one
//! that never was.

use std::collections::BTreeSet;
use std::fmt::Debug;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use sha2::{Digest, Sha256};

use super::{RowBuffer, StateMachine};
use crate::command::{Envelope, LockCommand, Outcome, RpcId};
use crate::domain::codec;
use crate::domain::ids::Position;
use crate::domain::json::Json;
use crate::domain::lock::FencingToken;
use crate::ports::Found;

/// Numbers that one entry is made of: a kind, three choices, a step of time and a flag.
pub(crate) type Dice = (u8, u8, u8, u8, i64, bool);

/// Chooses an entry, and whether there is a reload after it. Steps of time are small and large,
/// forwards and backwards.
pub(crate) fn dice() -> impl Strategy<Value = (Dice, bool)> {
    let step = prop_oneof![4 => -500_i64..2_000, 1 => -90_000_000_i64..90_000_000];
    let dice = (any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>(), step, any::<bool>());
    (dice, prop::bool::weighted(0.3))
}

/// Makes the same dice for the same seed, for ever.
fn fixed_dice(seed: u64, count: usize) -> Vec<(Dice, bool)> {
    let mut state = seed;
    // SplitMix64: G. Steele et al., "Fast Splittable Pseudorandom Number Generators" (2014).
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    let one = |_| {
        let [kind, a, b, c, flags, ..] = next().to_le_bytes();
        let far = next();
        let step = match flags >> 5 {
            0 => i64::try_from(far % 180_000_000).unwrap() - 90_000_000,
            _ => i64::try_from(far % 2_500).unwrap() - 500,
        };
        ((kind, a, b, c, step, flags & 1 == 1), flags & 6 == 6)
    };
    (0..count).map(one).collect()
}

/// Hashes everything that long scripts leave behind: the entries themselves, their outcomes, the
/// events, the rows. What is on disks already has these bytes, so that the hash never changes. The
/// entries are of version 2, by whose rules they are applied for ever.
pub(crate) fn digest<M: StateMachine + Default>(
    script: impl Fn(&[(Dice, bool)]) -> Vec<Scripted>,
) -> String {
    let mut hash = Sha256::new();
    for seed in 0..32 {
        let (mut machine, mut rows) = (M::default(), RowBuffer::default());
        for (index, (envelope, reload)) in (1..).zip(script(&fixed_dice(seed, 200))) {
            let envelope = Envelope { version: 2, ..envelope };
            hash.update(codec::encode(&envelope));
            let (outcome, _) = machine.apply(Position { term: TERM, index }, &envelope);
            hash.update(codec::encode(&outcome));
            hash.update(machine.take_events());
            if !machine.needs_files() {
                rows = RowBuffer::default();
            }
            if reload {
                write_down(&mut machine, &mut rows);
                hash.update(codec::encode(&all(&rows)));
                machine = M::load(&rows).expect("own rows can be read");
            }
        }
    }
    hex::encode(hash.finalize())
}

/// Makes a command of a lock of three choices.
pub(crate) fn lock(
    a: u8,
    b: u8,
    c: u8,
    metadata: Json,
    renewed_for_ms: Option<u64>,
) -> LockCommand {
    let key = ["k", "l"][usize::from(a % 2)].into();
    let holder = ["x", "y"][usize::from(b % 2)].into();
    let token = (!c.is_multiple_of(4)).then_some(FencingToken(u64::from(c % 8)));
    match a / 2 % 4 {
        0 => LockCommand::Acquire { key, holder, ttl_ms: u64::from(c), metadata },
        1 => LockCommand::Renew { key, holder, token, ttl_ms: renewed_for_ms },
        2 => LockCommand::Release { key, holder, token },
        _ => {
            let (token, renewal) = (FencingToken(u64::from(c % 8)), u64::from(b % 3));
            LockCommand::Expire { key, token, renewal }
        }
    }
}

/// Names the request that an entry is: of two nodes, some asked twice, each answered a little later.
pub(crate) fn rpc_id(index: u64, dice: &Dice) -> RpcId {
    let sequence = index.saturating_sub(u64::from(dice.1 % 3));
    RpcId {
        incarnation: u64::from(dice.2 % 2),
        sequence,
        first_incomplete: sequence.saturating_sub(u64::from(dice.3 % 8)),
    }
}

/// Checks that so many scripts come to all the kinds of outcomes that are wanted.
pub(crate) fn check_reach<M>(
    scripts: usize,
    script: impl Fn(&[(Dice, bool)]) -> Vec<Scripted>,
    differ: impl Fn(&M, &M) -> Option<String>,
    wanted: &[&str],
) where
    M: StateMachine + Default,
    M::Effect: PartialEq + Debug,
{
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeSet::new();
    for _ in 0..scripts {
        let dice = prop::collection::vec(dice(), 150).new_tree(&mut runner).unwrap().current();
        for outcome in run::<M>(&script(&dice), &differ) {
            let text = format!("{outcome:?}");
            let replayed = text.contains("replayed: true");
            let name = text.trim_start_matches("Refused(");
            let name = name.split(['(', ' ', ')']).next().unwrap_or_default();
            seen.insert(format!("{name}{}", if replayed { " again" } else { "" }));
        }
    }
    for name in wanted {
        assert!(seen.contains(*name), "{name} is not among {seen:?}");
    }
}

/// An entry, and whether the second machine is written down and loaded again after it.
pub(crate) type Scripted = (Envelope, bool);

/// The term of all entries.
pub(crate) const TERM: u64 = 3;

/// Runs the script on two machines, of which one is loaded again where the script says. `differ`
/// names what is not the same in two machines that have nothing to write down.
///
/// Returns the machine that was never loaded again, with its outcomes.
pub(crate) fn run<M>(script: &[Scripted], differ: impl Fn(&M, &M) -> Option<String>) -> Vec<Outcome>
where
    M: StateMachine + Default,
    M::Effect: PartialEq + Debug,
{
    let (mut kept, mut loaded) = (M::default(), M::default());
    let (mut kept_rows, mut loaded_rows) = (RowBuffer::default(), RowBuffer::default());
    let mut outcomes = Vec::new();
    for (index, (envelope, reload)) in (1..).zip(script) {
        let position = Position { term: TERM, index };
        let (outcome, effects) = kept.apply(position, envelope);
        let again = loaded.apply(position, envelope);
        assert_eq!((&outcome, &effects), (&again.0, &again.1), "at {index}: {envelope:?}");
        assert_eq!(kept.take_events(), loaded.take_events(), "events at {index}");
        outcomes.push(outcome);
        if !kept.needs_files() {
            // They are removed at once.
            (kept_rows, loaded_rows) = (RowBuffer::default(), RowBuffer::default());
        }
        if *reload {
            write_down(&mut kept, &mut kept_rows);
            write_down(&mut loaded, &mut loaded_rows);
            assert_eq!(all(&kept_rows), all(&loaded_rows), "rows at {index}");
            loaded = M::load(&loaded_rows).expect("own rows can be read");
            if let Some(what) = differ(&kept, &loaded) {
                panic!("{what} differs after a reload at {index}: {envelope:?}");
            }
        }
    }
    outcomes
}

fn write_down<M: StateMachine>(machine: &mut M, rows: &mut RowBuffer) {
    let (settled, dirty) = (machine.take_final_rows(), machine.take_dirty_rows());
    if machine.needs_files() {
        rows.put(settled);
        rows.put(dirty);
    }
    assert_eq!(machine.take_dirty_rows(), [], "written down twice");
}

fn all(rows: &RowBuffer) -> Vec<Found> {
    rows.scan(&[0], &[u8::MAX; 2], 1_000_000, false).expect("memory can be read")
}
