//! For tests: a state machine that is written down and loaded again at any moment must go on as one
//! that never was.

use std::fmt::Debug;

use super::{RowBuffer, StateMachine};
use crate::command::Envelope;
use crate::domain::ids::Position;
use crate::ports::Found;

/// An entry, and whether the second machine is written down and loaded again after it.
pub(crate) type Scripted = (Envelope, bool);

/// The term of all entries.
pub(crate) const TERM: u64 = 3;

/// Runs the script on two machines, of which one is loaded again where the script says. `differ`
/// names what is not the same in two machines that have nothing to write down.
///
/// Returns the machine that was never loaded again, with its outcomes.
pub(crate) fn run<M>(
    script: &[Scripted],
    differ: impl Fn(&M, &M) -> Option<String>,
) -> Vec<crate::command::Outcome>
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
