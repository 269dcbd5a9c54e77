//! How live runs are laid out in the index.
//!
//! The result of a step changes a few words of its run. If every run that has changed were written whole
//! whenever the replica makes its state durable, its input and all its outputs would be written again and
//! again: a tenant with fifty live runs of some megabytes had each node write seventy megabytes a second. So
//! what is long and does not change any more stands in rows of its own, which are written once. They go when
//! the run ends, for an ended run is written once, and whole.
//!
//! | key | value |
//! |---|---|
//! | `R` seq | a live run without its long parts, and which they are |
//! | `G` seq | what it was given, where that is long: workflow and input |
//! | `O` seq step | an output that is long |
//! | `L` seq | a live run as a whole: started by a command of an older version |
//!
//! Invariant: rows are a function of the commands, whatever was written down when and by which version of
//! the program. So a run keeps to the layout that it was started with.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::rows::seq_key;
use super::{Run, StepState};
use crate::domain::codec;
use crate::domain::json::Json;
use crate::domain::workflow::Workflow;
use crate::ports::{Row, StoreError};
use crate::state::RowBuffer;

const WHOLE_RUN: u8 = b'L';
const RUN: u8 = b'R';
const GIVEN: u8 = b'G';
const OUTPUT: u8 = b'O';

/// The shortest part that stands in a row of its own, bytes: what is about as long as the rest of a run is
/// not worth another row. In tests some numbers are as long, and some are not.
const LONG_BYTES: usize = if cfg!(test) { 3 } else { 4096 };

/// What of a run may be long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// Workflow and input.
    Given,
    /// The output of a step.
    Output(u16),
}

/// A live run, as far as it changes.
#[derive(Serialize, Deserialize)]
struct Stub {
    run: Run,
    is_given_apart: bool,
    outputs_apart: Vec<u16>,
}

/// Tells whether a part stands in a row of its own.
pub(super) fn is_apart(run: &Run, part: Part) -> bool {
    let bytes = match part {
        Part::Given => {
            let steps = run.workflow.steps.iter().map(|step| step.json.as_str().len());
            run.input.as_str().len() + steps.sum::<usize>()
        }
        Part::Output(step) => {
            let output = run.steps.get(usize::from(step)).and_then(|step| step.output.as_ref());
            output.map_or(0, |output| output.as_str().len())
        }
    };
    run.is_in_parts && bytes >= LONG_BYTES
}

/// The row of a run that has changed. Its parts have rows of their own.
pub(super) fn changed(run: &Run) -> Row {
    if !run.is_in_parts {
        return (seq_key(WHOLE_RUN, run.seq), Some(codec::encode(run)));
    }
    let mut stub = Stub {
        is_given_apart: is_apart(run, Part::Given),
        outputs_apart: outputs_apart(run).collect(),
        run: run.clone(),
    };
    if stub.is_given_apart {
        stub.run.workflow = Arc::new(Workflow { steps: Vec::new() });
        stub.run.input = Json::null();
    }
    for step in &stub.outputs_apart {
        stub.run.steps[usize::from(*step)].output = None;
    }
    (seq_key(RUN, run.seq), Some(codec::encode(&stub)))
}

/// The row of a part that is apart.
pub(super) fn part(run: &Run, part: Part) -> Row {
    let value = match part {
        Part::Given => codec::encode(&(&run.workflow, &run.input)),
        Part::Output(step) => codec::encode(&run.steps[usize::from(step)].output),
    };
    (part_key(run.seq, part), Some(value))
}

/// What takes the rows of a run away that is live no more.
pub(super) fn removed(run: &Run) -> impl Iterator<Item = Row> {
    let kind = if run.is_in_parts { RUN } else { WHOLE_RUN };
    let given = is_apart(run, Part::Given).then_some(Part::Given);
    let parts = given.into_iter().chain(outputs_apart(run).map(Part::Output));
    let parts = parts.map(|part| part_key(run.seq, part));
    std::iter::once(seq_key(kind, run.seq)).chain(parts).map(|key| (key, None))
}

/// Reads all live runs.
///
/// # Errors
/// When the index cannot be read, or a part is missing.
pub(super) fn load(rows: &RowBuffer) -> Result<Vec<Run>, StoreError> {
    let whole = rows.all::<Run>(WHOLE_RUN)?.into_iter().map(|(_, run)| Ok(run));
    let stubs = rows.all::<Stub>(RUN)?.into_iter().map(|(_, stub)| stub.complete(rows));
    whole.chain(stubs).collect()
}

impl Stub {
    fn complete(self, rows: &RowBuffer) -> Result<Run, StoreError> {
        let mut run = self.run;
        run.is_in_parts = true;
        if self.is_given_apart {
            (run.workflow, run.input) = read_part(rows, run.seq, Part::Given)?;
        }
        for step in self.outputs_apart {
            let output = read_part(rows, run.seq, Part::Output(step))?;
            if let Some(state) = run.steps.get_mut(usize::from(step)) {
                state.output = output;
            }
        }
        Ok(run)
    }
}

fn read_part<T: serde::de::DeserializeOwned>(
    rows: &RowBuffer,
    seq: u64,
    part: Part,
) -> Result<T, StoreError> {
    let missing = || StoreError::Damaged {
        file: "index".to_owned(),
        offset: 0,
        what: format!("the row of a part of run {seq} is missing: {part:?}"),
    };
    rows.get(&part_key(seq, part))?.ok_or_else(missing)
}

fn part_key(seq: u64, part: Part) -> Vec<u8> {
    match part {
        Part::Given => seq_key(GIVEN, seq),
        Part::Output(step) => [&seq_key(OUTPUT, seq)[..], &step.to_be_bytes()].concat(),
    }
}

fn outputs_apart(run: &Run) -> impl Iterator<Item = u16> {
    let done = |(step, state): (u16, &StepState)| state.output.is_some().then_some(step);
    let steps = (0_u16..).zip(&run.steps).filter_map(done);
    steps.filter(|step| is_apart(run, Part::Output(*step)))
}
