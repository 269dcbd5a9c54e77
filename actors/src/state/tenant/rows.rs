//! How a tenant's state is laid out in its index.
//!
//! | key | value |
//! |---|---|
//! | `m` | counters and record |
//! | `d` | runs accepted by day |
//! | `y` | time: `clock.rs` |
//! | `p` | bytes of inputs, outputs and definitions; counted anew where it is missing |
//! | `L` seq | live run: `run_rows.rs` |
//! | `E` seq | ended run |
//! | `G`, `O` | long parts of runs |
//! | `i` run id | seq of the run |
//! | `w` name | named workflow, with its name |
//! | `J` seq | job |
//! | `j` job id | seq of the job |
//! | `l` key | lock |
//! | `k` hash | idempotent call |
//! | `z` | where it lives, while or after it moves: `moving.rs`; never moves itself |
//! | `v`, `a` | requests that may be sent again: `completion_records.rs` |
//!
//! Sequence numbers are big-endian, so that keys sort by them. Values are `codec`'s.

use std::collections::BTreeMap;

use super::day::DayCount;
use super::definitions::definition_bytes;
use super::run::held_bytes;
use super::run_rows::{self, RunRow};
use super::{Dirty, Job, Meta, NamedWorkflow, Presence, Run, TenantState, Waiting};
use crate::domain::codec;
use crate::domain::ids::{JobId, RunId};
use crate::domain::page::{JsonSize, PageBudget};
use crate::domain::run::RunStatus;
use crate::ports::{Found, Row, StoreError};
use crate::state::tables::completion_records::CompletionRecords;
use crate::state::tables::idempotency::IdempotencyTable;
use crate::state::tables::lock_table::LockTable;
use crate::state::{RowBuffer, StateClock, decode_row, row_key};

const META: u8 = b'm';
const DAYS: u8 = b'd';
const PAYLOAD_BYTES: u8 = b'p';
const RUN_SEQ: u8 = b'i';
const WORKFLOW: u8 = b'w';
const JOB: u8 = b'J';
const JOB_SEQ: u8 = b'j';
const IDEMPOTENCY: u8 = b'k';
const PRESENCE: u8 = b'z';

/// Runs examined for one page at most, so that a rare status does not cost a whole scan.
const EXAMINED_MAX: usize = 10_000;
/// Bytes of rows examined for one page at most: a run may have many.
const EXAMINED_BYTES_MAX: usize = 32 << 20;
/// Rows read at once at most; few in tests, so that they see more than one batch.
const BATCH_ROWS_MAX: usize = if cfg!(test) { 3 } else { 256 };
/// Rows read at first, when it is not known yet how large they are.
const BATCH_ROWS_FIRST: usize = if cfg!(test) { 2 } else { 8 };
/// Bytes of rows read at once, about.
const BATCH_BYTES: usize = 1 << 20;

/// Tells whether a row says where the tenant lives. Each group has its own.
pub fn is_of_presence(key: &[u8]) -> bool {
    key == [PRESENCE]
}

pub(super) fn load(rows: &RowBuffer) -> Result<TenantState, StoreError> {
    match rows.get::<Presence>(&[PRESENCE])? {
        // The rows beside it are of a tenant that does nothing here.
        Some(presence @ Presence::Arriving(_)) => {
            Ok(TenantState { presence, ..TenantState::default() })
        }
        _ => load_whole(rows),
    }
}

/// Loads everything, also of a tenant that was taken in and does nothing yet.
pub(super) fn load_whole(rows: &RowBuffer) -> Result<TenantState, StoreError> {
    let meta: Meta = rows.get(&[META])?.unwrap_or_default();
    let days = DayCount { day: meta.day, runs: meta.runs_today, before: None };
    let mut state = TenantState {
        time: StateClock::load(rows, meta.last_at)?,
        days: rows.get(&[DAYS])?.unwrap_or(days),
        locks: LockTable::load(rows, meta.last_lock_token)?,
        calls: IdempotencyTable::load(rows, IDEMPOTENCY)?,
        completions: CompletionRecords::load(rows)?,
        presence: rows.get(&[PRESENCE])?.unwrap_or_default(),
        meta,
        ..TenantState::default()
    };
    for run in run_rows::load_live(rows)? {
        for (step, waiting) in (0_u16..).zip(&run.steps) {
            if let Waiting::Timer(at) | Waiting::Retry(at) = waiting.waiting {
                state.due.insert((at, run.attempt(step)));
            }
        }
        state.held_bytes += held_bytes(&run);
        state.runs.insert(run.id, run);
    }
    for (_, (name, named)) in rows.all::<(String, NamedWorkflow)>(WORKFLOW)? {
        state.held_bytes += definition_bytes(&named.workflow);
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

fn count_payloads(state: &TenantState, rows: &RowBuffer) -> Result<u64, StoreError> {
    let live = state.runs.values().map(|run| run.payload_bytes).sum::<u64>();
    let named = state.workflows.values().map(|named| definition_bytes(&named.workflow));
    let mut bytes = live + named.sum::<u64>();
    for_each(rows, run_rows::ENDED, |key, value| {
        bytes += RunRow::decode(key, value)?.run.payload_bytes;
        Ok(())
    })?;
    for_each(rows, JOB, |key, value| {
        bytes += definition_bytes(&decode_row::<Job>(key, value)?.workflow);
        Ok(())
    })?;
    Ok(bytes)
}

/// Reads the rows of a kind with a sequence number, a few at a time.
pub(super) fn for_each(
    rows: &RowBuffer,
    kind: u8,
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut from = seq_key(kind, 0);
    loop {
        let found = rows.scan(&from, &[kind + 1], BATCH_ROWS_FIRST, false)?;
        for (key, value) in &found {
            each(key, value)?;
        }
        match found.last().and_then(|(key, _)| seq_of(key)) {
            Some(last) if found.len() == BATCH_ROWS_FIRST => {
                from = seq_key(kind, last.saturating_add(1))
            }
            _ => return Ok(()),
        }
    }
}

pub(super) fn take_dirty(state: &mut TenantState) -> Vec<Row> {
    let Dirty { meta, presence, payload_bytes, runs, workflows } = std::mem::take(&mut state.dirty);
    let mut rows = Vec::new();
    if presence {
        rows.push((vec![PRESENCE], Some(codec::encode(&state.presence))));
    }
    if payload_bytes {
        rows.push((vec![PAYLOAD_BYTES], Some(codec::encode(&state.payload_bytes))));
    }
    if meta {
        state.meta.last_lock_token = state.locks.last_token();
        (state.meta.day, state.meta.runs_today) = (state.days.day, state.days.runs);
        rows.push((vec![META], Some(codec::encode(&state.meta))));
        rows.push((vec![DAYS], Some(codec::encode(&state.days))));
        rows.push(state.time.row());
    }
    rows.extend(runs.iter().filter_map(|id| state.runs.get(id)).map(run_rows::live));
    for name in workflows {
        let named = state.workflows.get(&name).map(|named| codec::encode(&(&name, named)));
        rows.push((row_key(WORKFLOW, name.as_bytes()), named));
    }
    rows.extend(state.locks.take_rows());
    rows.extend(state.calls.take_rows(IDEMPOTENCY));
    rows.extend(state.completions.take_rows());
    rows
}

/// The row that finds a run by its id.
pub(super) fn run_seq(id: RunId, seq: u64) -> Row {
    (row_key(RUN_SEQ, id.uuid().as_bytes()), Some(codec::encode(&seq)))
}

/// The rows of a job.
pub(super) fn job(seq: u64, job: &Job) -> [Row; 2] {
    [
        (seq_key(JOB, seq), Some(codec::encode(job))),
        (row_key(JOB_SEQ, job.id.uuid().as_bytes()), Some(codec::encode(&seq))),
    ]
}

impl TenantState {
    /// A run, live or ended.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn run(&self, rows: &RowBuffer, id: RunId) -> Result<Option<Run>, StoreError> {
        if let Some(run) = self.runs.get(&id) {
            return Ok(Some(run.clone()));
        }
        match rows.get::<u64>(&row_key(RUN_SEQ, id.uuid().as_bytes()))? {
            Some(seq) => run_rows::load_ended(rows, seq),
            None => Ok(None),
        }
    }

    /// A page of runs accepted before `before`, newest first, as `show` shows those that are
    /// wanted: all, or those of a status; and where to go on. One run is decoded at a time.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn runs_before<T: JsonSize>(
        &self,
        rows: &RowBuffer,
        before: Option<u64>,
        status: Option<RunStatus>,
        limit: usize,
        show: impl Fn(&Run) -> T,
    ) -> Result<(Vec<T>, Option<u64>), StoreError> {
        let mut before = before.unwrap_or(u64::MAX);
        let live = self.runs.values().filter(|run| run.seq < before);
        let mut live: BTreeMap<u64, &Run> = live.map(|run| (run.seq, run)).collect();
        let mut page = RunPage::new(limit, status, show);
        let mut batch_rows = BATCH_ROWS_FIRST;
        loop {
            let (from, to) = (seq_key(run_rows::ENDED, 0), seq_key(run_rows::ENDED, before));
            let ended = rows.scan(&from, &to, batch_rows, true)?;
            let is_last = ended.len() < batch_rows;
            batch_rows = rows_of_next_batch(&ended);
            for (key, value) in &ended {
                before = seq_of(key).unwrap_or_default();
                // Live runs that are newer come first.
                while let Some(newer) = live.last_entry().filter(|run| *run.key() > before) {
                    if !page.add(newer.remove(), 0) {
                        return Ok(page.cut());
                    }
                }
                if !page.has_room() || !page.add_row(rows, key, value)? {
                    return Ok(page.cut());
                }
            }
            if is_last {
                while let Some((_, run)) = live.pop_last() {
                    if !page.add(run, 0) {
                        return Ok(page.cut());
                    }
                }
                return Ok((page.found, None));
            }
        }
    }

    /// A job.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn job(&self, rows: &RowBuffer, id: JobId) -> Result<Option<Job>, StoreError> {
        match rows.get::<u64>(&row_key(JOB_SEQ, id.uuid().as_bytes()))? {
            Some(seq) => rows.get(&seq_key(JOB, seq)),
            None => Ok(None),
        }
    }

    /// A page of jobs created after `after`, as `show` shows them, and where to go on.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn jobs_after<T: JsonSize>(
        &self,
        rows: &RowBuffer,
        mut after: u64,
        limit: usize,
        show: impl Fn(&Job) -> T,
    ) -> Result<(Vec<T>, Option<u64>), StoreError> {
        let mut room = PageBudget::new(limit);
        let mut found = Vec::new();
        let mut batch_rows = BATCH_ROWS_FIRST;
        loop {
            let from = seq_key(JOB, after.saturating_add(1));
            let jobs = rows.scan(&from, &[JOB + 1], batch_rows, false)?;
            let is_last = jobs.len() < batch_rows;
            batch_rows = rows_of_next_batch(&jobs);
            for (key, value) in &jobs {
                let job = show(&decode_row(key, value)?);
                if !room.take(&job) {
                    return Ok((found, Some(after)));
                }
                found.push(job);
                after = seq_of(key).unwrap_or_default();
            }
            if is_last {
                return Ok((found, None));
            }
        }
    }
}

/// A page of runs in the making.
struct RunPage<T, S> {
    room: PageBudget,
    status: Option<RunStatus>,
    show: S,
    found: Vec<T>,
    /// The last run examined; the next page begins before it.
    last: Option<u64>,
    examined: usize,
    examined_bytes: usize,
}

impl<T: JsonSize, S: Fn(&Run) -> T> RunPage<T, S> {
    fn new(limit: usize, status: Option<RunStatus>, show: S) -> Self {
        let room = PageBudget::new(limit);
        Self { room, status, show, found: Vec::new(), last: None, examined: 0, examined_bytes: 0 }
    }

    /// Whether another run may be looked at. The first always may.
    const fn has_room(&self) -> bool {
        self.examined < EXAMINED_MAX && self.examined_bytes < EXAMINED_BYTES_MAX
    }

    fn is_wanted(&self, run: &Run) -> bool {
        self.status.is_none_or(|status| run.status == status)
    }

    /// Adds a run that has ended. Of one that is not wanted the long parts are not read.
    fn add_row(&mut self, rows: &RowBuffer, key: &[u8], value: &[u8]) -> Result<bool, StoreError> {
        let row = RunRow::decode(key, value)?;
        if !self.is_wanted(&row.run) {
            return Ok(self.add(&row.run, value.len()));
        }
        let run = row.complete(rows)?;
        // What was read, with its workflow, whatever of it is shown.
        let parts = usize::try_from(held_bytes(&run)).unwrap_or(usize::MAX);
        Ok(self.add(&run, value.len().saturating_add(parts)))
    }

    /// Adds a run, unless it is not wanted; `false` when the page is full without it.
    fn add(&mut self, run: &Run, bytes: usize) -> bool {
        if !self.has_room() {
            return false;
        }
        if self.is_wanted(run) {
            let shown = (self.show)(run);
            if !self.room.take(&shown) {
                return false;
            }
            self.found.push(shown);
        }
        self.last = Some(run.seq);
        self.examined += 1;
        self.examined_bytes = self.examined_bytes.saturating_add(bytes);
        true
    }

    /// The page that is full, and where to go on.
    fn cut(self) -> (Vec<T>, Option<u64>) {
        (self.found, self.last)
    }
}

/// How many rows to read next: about as many as are a batch in bytes, by those just read.
fn rows_of_next_batch(rows: &[Found]) -> usize {
    let bytes: usize = rows.iter().map(|(_, value)| value.len()).sum();
    let fit = BATCH_BYTES.saturating_mul(rows.len()) / bytes.max(1);
    // No more than twice as many: those behind small rows may be large.
    fit.clamp(1, (rows.len() * 2).clamp(1, BATCH_ROWS_MAX))
}

pub(super) fn seq_key(kind: u8, seq: u64) -> Vec<u8> {
    row_key(kind, &seq.to_be_bytes())
}

fn seq_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(1..)?.try_into().ok()?))
}
