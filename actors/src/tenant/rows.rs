//! How a tenant's state is laid out in its index.
//!
//! | key | value |
//! |---|---|
//! | `m` | counters and record |
//! | `p` | bytes of inputs, outputs and definitions; counted anew where it is missing |
//! | `L` seq | live run |
//! | `E` seq | ended run |
//! | `i` run id | seq of the run |
//! | `w` name | named workflow, with its name |
//! | `J` seq | job |
//! | `j` job id | seq of the job |
//! | `l` key | lock |
//! | `k` hash | idempotent call |
//! | `v`, `a` | requests that may be sent again: `answered.rs` |
//!
//! Sequence numbers are big-endian, so that keys sort by them. Values are `codec`'s.

use std::collections::BTreeMap;

use super::definitions::definition_bytes;
use super::{Dirty, Job, Made, Meta, NamedWorkflow, Run, TenantState, Waiting};
use crate::answered::Answered;
use crate::codec;
use crate::idempotency::{Done, IdempotencyTable};
use crate::ids::{JobId, RunId};
use crate::lock_table::LockTable;
use crate::outcome::LockView;
use crate::part::{Overlay, decode_row};
use crate::ports::{Row, StoreError};

const META: u8 = b'm';
const PAYLOAD_BYTES: u8 = b'p';
const LIVE_RUN: u8 = b'L';
const ENDED_RUN: u8 = b'E';
const RUN_SEQ: u8 = b'i';
const WORKFLOW: u8 = b'w';
const JOB: u8 = b'J';
const JOB_SEQ: u8 = b'j';
const LOCK: u8 = b'l';
const IDEMPOTENCY: u8 = b'k';

/// Runs examined for one page at most, so that a rare status does not cost a whole scan.
const EXAMINED_MAX: usize = 10_000;
/// Rows read at once; few in tests, so that they see more than one batch.
const SCAN_ROWS: usize = if cfg!(test) { 3 } else { 256 };

pub(super) fn load(rows: &Overlay) -> Result<TenantState, StoreError> {
    let meta: Meta = rows.get(&[META])?.unwrap_or_default();
    let locks = rows.all::<LockView>(LOCK)?.into_iter().map(|(_, lock)| lock);
    let calls = rows.all::<Done<Made>>(IDEMPOTENCY)?;
    let calls = calls.into_iter().filter_map(|(key, done)| Some((key.try_into().ok()?, done)));
    let mut state = TenantState {
        locks: LockTable::load(locks, meta.last_lock_token),
        calls: IdempotencyTable::load(calls),
        answered: Answered::load(rows)?,
        meta,
        ..TenantState::default()
    };
    for (_, run) in rows.all::<Run>(LIVE_RUN)? {
        for (step, waiting) in (0_u16..).zip(&run.steps) {
            if let Waiting::Timer(at) | Waiting::Retry(at) = waiting.waiting {
                state.due.insert((at, run.id, step, waiting.attempt));
            }
        }
        state.runs.insert(run.id, run);
    }
    for (_, (name, named)) in rows.all::<(String, NamedWorkflow)>(WORKFLOW)? {
        state.workflows.insert(name, named);
    }
    match rows.get::<u64>(&[PAYLOAD_BYTES])? {
        Some(bytes) => state.payload_bytes = bytes,
        None => {
            // Rows of a version that did not count.
            state.payload_bytes = count_payloads(&state, rows)?;
            state.dirty.payload_bytes = true;
        }
    }
    Ok(state)
}

fn count_payloads(state: &TenantState, rows: &Overlay) -> Result<u64, StoreError> {
    let live: u64 = state.runs.values().map(|run| run.payload_bytes).sum();
    let named = state.workflows.values().map(|named| definition_bytes(&named.workflow));
    let mut bytes = live + named.sum::<u64>();
    for_each(rows, ENDED_RUN, |run: Run| bytes += run.payload_bytes)?;
    for_each(rows, JOB, |job: Job| bytes += definition_bytes(&job.workflow))?;
    Ok(bytes)
}

/// Decodes the rows of a kind with a sequence number, a few at a time.
fn for_each<T: serde::de::DeserializeOwned>(
    rows: &Overlay,
    kind: u8,
    mut each: impl FnMut(T),
) -> Result<(), StoreError> {
    let mut from = seq_key(kind, 0);
    loop {
        let found = rows.scan(&from, &[kind + 1], SCAN_ROWS, false)?;
        for (key, value) in &found {
            each(decode_row(key, value)?);
        }
        match found.last().and_then(|(key, _)| seq_of(key)) {
            Some(last) if found.len() == SCAN_ROWS => from = seq_key(kind, last.saturating_add(1)),
            _ => return Ok(()),
        }
    }
}

pub(super) fn take_dirty(state: &mut TenantState) -> Vec<Row> {
    let Dirty { meta, payload_bytes, runs, workflows } = std::mem::take(&mut state.dirty);
    let mut rows = Vec::new();
    if payload_bytes {
        rows.push((vec![PAYLOAD_BYTES], Some(codec::encode(&state.payload_bytes))));
    }
    if meta {
        state.meta.last_lock_token = state.locks.last_token();
        rows.push((vec![META], Some(codec::encode(&state.meta))));
    }
    for run in runs.iter().filter_map(|id| state.runs.get(id)) {
        rows.push((seq_key(LIVE_RUN, run.seq), Some(codec::encode(run))));
    }
    for name in workflows {
        let named = state.workflows.get(&name).map(|named| codec::encode(&(&name, named)));
        rows.push((id_key(WORKFLOW, name.as_bytes()), named));
    }
    for (id, lock) in state.locks.take_dirty() {
        rows.push((id_key(LOCK, id.as_bytes()), lock.map(|lock| codec::encode(&lock))));
    }
    for (id, done) in state.calls.take_dirty() {
        rows.push((id_key(IDEMPOTENCY, &id), done.map(|done| codec::encode(&done))));
    }
    rows.extend(state.answered.take_rows());
    rows
}

/// The rows of a run that has ended.
pub(super) fn ended_run(run: &Run) -> [Row; 2] {
    [(seq_key(LIVE_RUN, run.seq), None), (seq_key(ENDED_RUN, run.seq), Some(codec::encode(run)))]
}

/// The row that finds a run by its id.
pub(super) fn run_seq(id: RunId, seq: u64) -> Row {
    (id_key(RUN_SEQ, id.uuid().as_bytes()), Some(codec::encode(&seq)))
}

/// The rows of a job.
pub(super) fn job(seq: u64, job: &Job) -> [Row; 2] {
    [
        (seq_key(JOB, seq), Some(codec::encode(job))),
        (id_key(JOB_SEQ, job.id.uuid().as_bytes()), Some(codec::encode(&seq))),
    ]
}

impl TenantState {
    /// A run, live or ended.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn run(&self, rows: &Overlay, id: RunId) -> Result<Option<Run>, StoreError> {
        if let Some(run) = self.runs.get(&id) {
            return Ok(Some(run.clone()));
        }
        match rows.get::<u64>(&id_key(RUN_SEQ, id.uuid().as_bytes()))? {
            Some(seq) => rows.get(&seq_key(ENDED_RUN, seq)),
            None => Ok(None),
        }
    }

    /// Up to `limit` runs accepted before `before`, newest first, and where to go on.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn runs_before(
        &self,
        rows: &Overlay,
        before: Option<u64>,
        limit: usize,
        wanted: impl Fn(&Run) -> bool,
    ) -> Result<(Vec<Run>, Option<u64>), StoreError> {
        let mut before = before.unwrap_or(u64::MAX);
        let live = self.runs.values().filter(|run| run.seq < before);
        let mut live: BTreeMap<u64, Run> = live.map(|run| (run.seq, run.clone())).collect();
        let (mut found, mut examined) = (Vec::new(), 0);
        loop {
            let from = seq_key(ENDED_RUN, 0);
            let ended = rows.scan(&from, &seq_key(ENDED_RUN, before), SCAN_ROWS, true)?;
            let is_last = ended.len() < SCAN_ROWS;
            // Live runs that are older than this batch wait for one of the next.
            let oldest = ended.last().filter(|_| !is_last).and_then(|(key, _)| seq_of(key));
            let mut batch = live.split_off(&oldest.unwrap_or(0));
            for (key, value) in &ended {
                let run: Run = decode_row(key, value)?;
                batch.insert(run.seq, run);
            }
            for (seq, run) in batch.into_iter().rev() {
                if found.len() == limit || examined == EXAMINED_MAX {
                    return Ok((found, Some(before)));
                }
                before = seq;
                examined += 1;
                if wanted(&run) {
                    found.push(run);
                }
            }
            if is_last {
                return Ok((found, None));
            }
        }
    }

    /// A job.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn job(&self, rows: &Overlay, id: JobId) -> Result<Option<Job>, StoreError> {
        match rows.get::<u64>(&id_key(JOB_SEQ, id.uuid().as_bytes()))? {
            Some(seq) => rows.get(&seq_key(JOB, seq)),
            None => Ok(None),
        }
    }

    /// Up to `limit` jobs created after `after`, and where to go on.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn jobs_after(
        &self,
        rows: &Overlay,
        after: u64,
        limit: usize,
    ) -> Result<(Vec<Job>, Option<u64>), StoreError> {
        let from = seq_key(JOB, after.saturating_add(1));
        let mut found = rows.scan(&from, &[JOB + 1], limit + 1, false)?;
        let more = found.len() > limit;
        found.truncate(limit);
        let cursor = found.last().filter(|_| more).and_then(|(key, _)| seq_of(key));
        let jobs = found.iter().map(|(key, value)| decode_row(key, value));
        Ok((jobs.collect::<Result<_, _>>()?, cursor))
    }
}

fn seq_key(kind: u8, seq: u64) -> Vec<u8> {
    id_key(kind, &seq.to_be_bytes())
}

fn seq_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(1..)?.try_into().ok()?))
}

fn id_key(kind: u8, id: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + id.len());
    key.push(kind);
    key.extend_from_slice(id);
    key
}
