//! How runs are laid out in the index.
//!
//! The result of a step changes a few words of its run. If every run that has changed were written whole
//! whenever the replica makes its state durable, its input and all its outputs would be written again and
//! again, at last in one row of many megabytes: a tenant with fifty live runs of some megabytes had each
//! node write seventy megabytes a second. So what is long and does not change any more stands in rows of its
//! own, which are written once.
//!
//! | key | value |
//! |---|---|
//! | `L` seq | a live run |
//! | `E` seq | an ended run |
//! | `G` seq | what a run was given, where that is long: workflow and input |
//! | `O` seq step | an output that is long |
//!
//! The row of a run that was started by a command of an older version holds the whole run. Its first byte is
//! the length of the run's id, 16; that of a row whose long parts are apart is [`APART`].
//!
//! An ended run is kept until its tenant is deleted.
//!
//! Invariant: rows are a function of the commands, whatever was written down when and by which version of
//! the program. So a run keeps to the layout that it was started with.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Run;
use super::rows::seq_key;
use crate::domain::codec;
use crate::domain::json::Json;
use crate::domain::workflow::Workflow;
use crate::ports::{Row, StoreError};
use crate::state::{RowBuffer, decode_row};

const LIVE: u8 = b'L';
pub(super) const ENDED: u8 = b'E';
const GIVEN: u8 = b'G';
const OUTPUT: u8 = b'O';

/// Begins the row of a run whose long parts have rows of their own.
const APART: u8 = 0;

/// The shortest part that stands in a row of its own, bytes: what is about as long as the rest of a run is
/// not worth another row. In tests some numbers are as long, and some are not.
const LONG_BYTES: usize = if cfg!(test) { 3 } else { 4096 };

/// What the row of a run holds.
#[derive(Serialize, Deserialize)]
pub(super) struct RunRow {
    /// The run, without what is apart.
    pub(super) run: Run,
    is_given_apart: bool,
    outputs_apart: Vec<u16>,
}

/// The row of what a run was given, if it is apart.
pub(super) fn given(run: &Run) -> Option<Row> {
    let value = || Some(codec::encode(&(&run.workflow, &run.input)));
    is_given_apart(run).then(|| (seq_key(GIVEN, run.seq), value()))
}

/// The row of an output, if it is apart.
pub(super) fn output(run: &Run, step: u16) -> Option<Row> {
    let output = run.steps.get(usize::from(step))?.output.as_ref()?;
    is_apart(run, output).then(|| (output_key(run.seq, step), Some(codec::encode(output))))
}

/// The row of a run that is live.
pub(super) fn live(run: &Run) -> Row {
    (seq_key(LIVE, run.seq), Some(RunRow::of(run).encode()))
}

/// The rows of a run that has ended.
pub(super) fn ended(run: &Run) -> [Row; 2] {
    [(seq_key(LIVE, run.seq), None), (seq_key(ENDED, run.seq), Some(RunRow::of(run).encode()))]
}

/// Reads all live runs.
///
/// # Errors
/// When the index cannot be read, or a part is missing.
pub(super) fn load_live(rows: &RowBuffer) -> Result<Vec<Run>, StoreError> {
    let found = rows.scan(&[LIVE], &[LIVE + 1], usize::MAX / 2, false)?;
    found.iter().map(|(key, value)| RunRow::decode(key, value)?.complete(rows)).collect()
}

/// Reads a run that has ended.
///
/// # Errors
/// When the index cannot be read, or a part is missing.
pub(super) fn load_ended(rows: &RowBuffer, seq: u64) -> Result<Option<Run>, StoreError> {
    let key = seq_key(ENDED, seq);
    let found = rows.value(&key)?;
    found.map(|value| RunRow::decode(&key, &value)?.complete(rows)).transpose()
}

impl RunRow {
    fn of(run: &Run) -> Self {
        let outputs = (0_u16..)
            .zip(&run.steps)
            .filter(|(_, state)| state.output.as_ref().is_some_and(|output| is_apart(run, output)));
        let mut row = Self {
            is_given_apart: is_given_apart(run),
            outputs_apart: outputs.map(|(step, _)| step).collect(),
            run: run.clone(),
        };
        if row.is_given_apart {
            row.run.workflow = Arc::new(Workflow { steps: Vec::new() });
            row.run.input = Json::null();
        }
        for step in &row.outputs_apart {
            row.run.steps[usize::from(*step)].output = None;
        }
        row
    }

    /// Decodes the row of a run, live or ended.
    ///
    /// # Errors
    /// When it cannot be decoded.
    pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Self, StoreError> {
        match value {
            [APART, rest @ ..] => {
                let mut row: Self = decode_row(key, rest)?;
                row.run.is_in_parts = true;
                Ok(row)
            }
            whole => {
                let run = decode_row(key, whole)?;
                Ok(Self { run, is_given_apart: false, outputs_apart: Vec::new() })
            }
        }
    }

    /// Reads what is apart.
    ///
    /// # Errors
    /// When the index cannot be read, or a part is missing.
    pub(super) fn complete(self, rows: &RowBuffer) -> Result<Run, StoreError> {
        let mut run = self.run;
        if self.is_given_apart {
            (run.workflow, run.input) = read(rows, &seq_key(GIVEN, run.seq))?;
        }
        for step in self.outputs_apart {
            let output = read(rows, &output_key(run.seq, step))?;
            if let Some(state) = run.steps.get_mut(usize::from(step)) {
                state.output = Some(output);
            }
        }
        Ok(run)
    }

    /// Encodes the row.
    pub(super) fn encode(&self) -> Vec<u8> {
        if !self.run.is_in_parts {
            return codec::encode(&self.run);
        }
        let mut bytes = vec![APART];
        codec::encode_into(self, &mut bytes);
        bytes
    }
}

fn read<T: DeserializeOwned>(rows: &RowBuffer, key: &[u8]) -> Result<T, StoreError> {
    rows.get(key)?.ok_or_else(|| StoreError::Damaged {
        file: "index".to_owned(),
        offset: 0,
        what: format!("row \"{}\" is missing, a part of a run", key.escape_ascii()),
    })
}

fn output_key(seq: u64, step: u16) -> Vec<u8> {
    [&seq_key(OUTPUT, seq)[..], &step.to_be_bytes()].concat()
}

fn is_given_apart(run: &Run) -> bool {
    let steps = run.workflow.steps.iter().map(|step| step.json.as_str().len());
    run.is_in_parts && run.input.as_str().len() + steps.sum::<usize>() >= LONG_BYTES
}

fn is_apart(run: &Run, output: &Json) -> bool {
    run.is_in_parts && output.as_str().len() >= LONG_BYTES
}
