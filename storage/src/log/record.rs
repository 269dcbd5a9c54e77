//! What is written into the log: records, and the frame around each.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | length of the payload, little endian |
//! | 4 | CRC-32 of the segment's number, the batch and the payload |
//! | 4 | batch: where in this segment the write began that this record was part of |
//! | n | payload: a tag of one byte, and what [`Record`] says |
//!
//! **Why `batch` is there.** A batch is written only after everything before it was synced. So a
//! valid record whose batch begins behind a broken place proves that the broken place had been
//! synced: it is damage, and acknowledged entries are lost. Without such a witness the broken place
//! belongs to the last write, which nobody was told of. Recovery tells a torn write from damage by
//! this alone (see `recovery`). The segment's number is in the checksum so that old blocks of a
//! deleted segment, come to light behind a lost write, are never taken for records.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shiioo_actors::command::{Command, Envelope};
use shiioo_actors::domain::codec;
use shiioo_actors::domain::ids::{GroupId, Position, RaftId, StateMachineId, TenantId};

/// Bytes before the payload.
pub(crate) const FRAME_BYTES: usize = 12;

/// The largest payload, bytes: what the codec decodes at most, and an entry's own fields.
pub(crate) const PAYLOAD_BYTES_MAX: usize = codec::DECODE_BYTES_MAX + ENTRY_HEAD_BYTES;

/// Tag, group, index, term and kind of an entry, before its body.
const ENTRY_HEAD_BYTES: usize = 1 + 4 + 8 + 8 + 1;

/// A checkpoint of version 1, which does not say who has files.
const TAG_CHECKPOINT: u8 = 1;
const TAG_VOTE: u8 = 2;
const TAG_ENTRY: u8 = 3;
const TAG_TRUNCATE: u8 = 4;
const TAG_PURGE: u8 = 5;
const TAG_LOW_WATER_MARK: u8 = 6;
const TAG_CLOSED: u8 = 7;
const TAG_CHECKPOINT_WITH_FILES: u8 = 8;
const TAG_FILES: u8 = 9;
const TAG_LEFT: u8 = 10;
const TAG_CHECKPOINT_WITH_LEFT: u8 = 11;

const KIND_BLANK: u8 = 0;
const KIND_COMMAND: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

/// The vote of this node in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Vote {
    pub term: u64,
    pub node: RaftId,
    /// Whether a quorum gave the same vote, so that the node leads the term.
    pub committed: bool,
}

/// The members of a group: one set of voters, or two while it changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Members {
    pub voters: Vec<Vec<RaftId>>,
    /// Voters and learners.
    pub nodes: Vec<RaftId>,
}

impl Members {
    /// Checks that a group can consist of these members. openraft takes it for granted.
    pub fn check(&self) -> Result<(), String> {
        let has_quorum = !self.voters.is_empty() && self.voters.iter().all(|set| !set.is_empty());
        let is_known = self.voters.iter().flatten().all(|voter| self.nodes.contains(voter));
        if has_quorum && is_known { Ok(()) } else { Err(format!("no membership: {self:?}")) }
    }
}

/// The position up to which every entry is durable in files, and the members of the group there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LowWaterMark {
    pub position: Position,
    /// The last membership at or below `position`, and where it stands.
    pub members: Option<(Position, Members)>,
}

/// The state of a group beside its entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub(crate) struct GroupState {
    pub vote: Option<Vote>,
    /// The last entry that was given up; entries begin behind it.
    pub purged: Option<Position>,
    pub low_water_mark: Option<LowWaterMark>,
}

/// The state of the whole log beside its entries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Checkpoint {
    pub groups: BTreeMap<GroupId, GroupState>,
    /// Who has files, and up to where those were durable at the last report.
    pub files: BTreeMap<StateMachineId, Position>,
    /// Where the logs of the groups ended that this node has left.
    pub left: BTreeMap<GroupId, Position>,
}

/// An entry of a group's log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LogEntry {
    pub position: Position,
    pub body: Body,
}

/// The contents of an entry.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Body {
    Blank,
    Command(Arc<Envelope>),
    Members(Members),
}

/// One record, as recovery sees it. The body of an entry is not decoded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Record {
    /// Stands first in every segment: the state of all groups, so that older segments can go.
    Checkpoint(Checkpoint),
    Vote(GroupId, Vote),
    Entry(GroupId, Position),
    /// Removes the group's entries from this index on.
    Truncate(GroupId, u64),
    /// Gives up the group's entries up to this one.
    Purge(GroupId, Position),
    LowWaterMark(GroupId, LowWaterMark),
    /// Says up to where files are durable; `None` when they are about to be removed.
    Files(StateMachineId, Option<Position>),
    /// Gives up everything of the group but the vote, and says where its log ended: this node has no
    /// replica of it any more.
    Left(GroupId, Option<Position>),
    /// Ends a log that is closed: the witness that everything before was synced.
    Closed,
}

fn put(tag: u8, value: &impl Serialize, bytes: &mut Vec<u8>) {
    bytes.push(tag);
    codec::encode_into(value, bytes);
}

/// Writes a checkpoint's payload.
pub(crate) fn put_checkpoint(checkpoint: &Checkpoint, bytes: &mut Vec<u8>) {
    let files: Vec<_> = checkpoint.files.iter().map(|(part, at)| (tenant_of(*part), *at)).collect();
    // As ever, where no group was left: a program that knows of none can read it.
    if checkpoint.left.is_empty() {
        put(TAG_CHECKPOINT_WITH_FILES, &(&checkpoint.groups, files), bytes);
    } else {
        put(TAG_CHECKPOINT_WITH_LEFT, &(&checkpoint.groups, files, &checkpoint.left), bytes);
    }
}

/// Writes the payload of a report of files.
pub(crate) fn put_files(part: StateMachineId, upto: Option<Position>, bytes: &mut Vec<u8>) {
    put(TAG_FILES, &(tenant_of(part), upto), bytes);
}

/// Gives the tenant whose files are meant; `None` for the control plane.
fn tenant_of(part: StateMachineId) -> Option<TenantId> {
    match part {
        StateMachineId::System => None,
        StateMachineId::Tenant(tenant) => Some(tenant),
    }
}

/// Who has files, as a checkpoint has it.
type Files = Vec<(Option<TenantId>, Position)>;

fn by_part(files: Files) -> BTreeMap<StateMachineId, Position> {
    files.into_iter().map(|(tenant, at)| (part_of(tenant), at)).collect()
}

fn part_of(tenant: Option<TenantId>) -> StateMachineId {
    tenant.map_or(StateMachineId::System, StateMachineId::Tenant)
}

/// Writes a vote's payload.
pub(crate) fn put_vote(group: GroupId, vote: Vote, bytes: &mut Vec<u8>) {
    put(TAG_VOTE, &(group, vote), bytes);
}

impl LogEntry {
    /// Counts the bytes that [`put_entry`] writes.
    pub fn payload_len(&self) -> usize {
        ENTRY_HEAD_BYTES
            + match &self.body {
                Body::Blank => 0,
                Body::Command(envelope) => codec::encoded_len(envelope.as_ref()),
                Body::Members(members) => codec::encoded_len(members),
            }
    }
}

/// Writes an entry's payload.
pub(crate) fn put_entry(group: GroupId, entry: &LogEntry, bytes: &mut Vec<u8>) {
    // By hand and of fixed length, so that recovery reads group and position without decoding the
    // body.
    bytes.push(TAG_ENTRY);
    bytes.extend_from_slice(&group.0.to_le_bytes());
    bytes.extend_from_slice(&entry.position.index.to_le_bytes());
    bytes.extend_from_slice(&entry.position.term.to_le_bytes());
    match &entry.body {
        Body::Blank => bytes.push(KIND_BLANK),
        Body::Command(envelope) => {
            bytes.push(KIND_COMMAND);
            codec::encode_into(envelope.as_ref(), bytes);
        }
        Body::Members(members) => {
            bytes.push(KIND_MEMBERSHIP);
            codec::encode_into(members, bytes);
        }
    }
}

/// Writes a truncation's payload.
pub(crate) fn put_truncate(group: GroupId, from: u64, bytes: &mut Vec<u8>) {
    put(TAG_TRUNCATE, &(group, from), bytes);
}

/// Writes a purge's payload.
pub(crate) fn put_purge(group: GroupId, upto: Position, bytes: &mut Vec<u8>) {
    put(TAG_PURGE, &(group, upto), bytes);
}

/// Writes the payload of the record that a group was left.
pub(crate) fn put_left(group: GroupId, last: Option<Position>, bytes: &mut Vec<u8>) {
    put(TAG_LEFT, &(group, last), bytes);
}

/// Writes a low-water mark's payload.
pub(crate) fn put_low_water_mark(group: GroupId, mark: &LowWaterMark, bytes: &mut Vec<u8>) {
    put(TAG_LOW_WATER_MARK, &(group, mark), bytes);
}

/// Writes the payload of the record that closes a log.
pub(crate) fn put_closed(bytes: &mut Vec<u8>) {
    bytes.push(TAG_CLOSED);
}

/// Gives the state machine that a command is for.
pub(crate) fn target_of(envelope: &Envelope) -> StateMachineId {
    match &envelope.command {
        Command::System(_) => StateMachineId::System,
        Command::Tenant { tenant, .. } => StateMachineId::Tenant(*tenant),
    }
}

/// Decodes a payload; of an entry only its position.
pub(crate) fn decode_record(payload: &[u8]) -> Result<Record, String> {
    fn body<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
        codec::decode(bytes).map_err(|error| error.to_string())
    }
    fn of_group<T: serde::de::DeserializeOwned>(
        bytes: &[u8],
        record: impl FnOnce(GroupId, T) -> Record,
    ) -> Result<Record, String> {
        let (group, value) = body(bytes)?;
        Ok(record(group, value))
    }
    // The checksum was right, so a payload that cannot be decoded was written by another version.
    let (tag, rest) = payload.split_first().ok_or("an empty record")?;
    Ok(match *tag {
        TAG_CHECKPOINT => {
            let groups: Vec<(GroupId, GroupState)> = body(rest)?;
            let groups = groups.into_iter().collect();
            Record::Checkpoint(Checkpoint { groups, ..Checkpoint::default() })
        }
        TAG_CHECKPOINT_WITH_FILES => {
            let (groups, files): (_, Files) = body(rest)?;
            Record::Checkpoint(Checkpoint { groups, files: by_part(files), left: BTreeMap::new() })
        }
        TAG_CHECKPOINT_WITH_LEFT => {
            let (groups, files, left): (_, Files, _) = body(rest)?;
            Record::Checkpoint(Checkpoint { groups, files: by_part(files), left })
        }
        TAG_FILES => {
            let (tenant, upto) = body(rest)?;
            Record::Files(part_of(tenant), upto)
        }
        TAG_VOTE => of_group(rest, Record::Vote)?,
        TAG_ENTRY => {
            let (group, position, kind, body) = entry_head(payload)?;
            if kind == KIND_COMMAND {
                // Refused when the log is opened, rather than when the entry is needed.
                Envelope::check_version(body).map_err(|error| error.to_string())?;
            }
            Record::Entry(group, position)
        }
        TAG_TRUNCATE => of_group(rest, Record::Truncate)?,
        TAG_PURGE => of_group(rest, Record::Purge)?,
        TAG_LOW_WATER_MARK => of_group(rest, Record::LowWaterMark)?,
        TAG_LEFT => of_group(rest, Record::Left)?,
        TAG_CLOSED if rest.is_empty() => Record::Closed,
        tag => return Err(format!("a record of unknown kind {tag}")),
    })
}

/// Decodes an entry whole.
pub(crate) fn decode_entry(payload: &[u8]) -> Result<(GroupId, LogEntry), String> {
    let (group, position, kind, body) = entry_head(payload)?;
    let body = match kind {
        KIND_BLANK if body.is_empty() => Body::Blank,
        KIND_COMMAND => {
            Body::Command(Arc::new(Envelope::decode(body).map_err(|error| error.to_string())?))
        }
        KIND_MEMBERSHIP => Body::Members(codec::decode(body).map_err(|error| error.to_string())?),
        kind => return Err(format!("an entry of unknown kind {kind}")),
    };
    Ok((group, LogEntry { position, body }))
}

fn entry_head(payload: &[u8]) -> Result<(GroupId, Position, u8, &[u8]), String> {
    if payload.len() < ENTRY_HEAD_BYTES || payload[0] != TAG_ENTRY {
        return Err("not an entry".into());
    }
    let group = GroupId(u32_at(payload, 1));
    let position = Position { index: u64_at(payload, 5), term: u64_at(payload, 13) };
    Ok((group, position, payload[21], &payload[ENTRY_HEAD_BYTES..]))
}

/// Frames a payload behind what `bytes` holds, and gives the length of the whole record. Gives
/// `None` and leaves `bytes` as it was when the payload is larger than [`PAYLOAD_BYTES_MAX`].
pub(crate) fn frame(
    segment: u32,
    batch: u32,
    bytes: &mut Vec<u8>,
    put: impl FnOnce(&mut Vec<u8>),
) -> Option<u32> {
    // Room for the frame first, and the payload behind it: its length and checksum are known only
    // then, and it is not copied.
    let start = bytes.len();
    bytes.extend_from_slice(&[0; FRAME_BYTES]);
    put(bytes);
    let payload = start + FRAME_BYTES..bytes.len();
    if payload.len() > PAYLOAD_BYTES_MAX {
        bytes.truncate(start);
        return None;
    }
    let len = u32::try_from(payload.len()).ok()?;
    let crc = checksum(segment, batch, &bytes[payload]);
    bytes[start..start + 4].copy_from_slice(&len.to_le_bytes());
    bytes[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    bytes[start + 8..start + 12].copy_from_slice(&batch.to_le_bytes());
    u32::try_from(bytes.len() - start).ok()
}

/// A framed record found in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Framed {
    pub batch: u32,
    pub payload: Range<usize>,
}

/// Reads the frame at `offset` of a segment's bytes; `None` when no whole record stands there.
pub(crate) fn read_frame(segment: u32, bytes: &[u8], offset: usize) -> Option<Framed> {
    let framed = parse_frame(bytes, offset)?;
    let crc = u32_at(bytes, offset + 4);
    (checksum(segment, framed.batch, &bytes[framed.payload.clone()]) == crc).then_some(framed)
}

/// Tells whether a record behind `broken` was written after `broken` was synced.
///
/// The record may stand anywhere: the length of a broken record cannot be trusted, so every offset
/// is tried. A record that begins in the batch of the broken place (`batch <= broken`) proves
/// nothing.
pub(crate) fn is_witnessed(segment: u32, bytes: &[u8], broken: usize) -> bool {
    (broken + 1..bytes.len().saturating_sub(FRAME_BYTES)).any(|offset| {
        // The batch is checked before the checksum, because it is cheap and almost never right in
        // bytes that are no record.
        parse_frame(bytes, offset).is_some_and(|framed| {
            let batch = framed.batch as usize;
            batch > broken && batch <= offset
        }) && read_frame(segment, bytes, offset).is_some()
    })
}

/// Finds the first whole record that begins behind `broken`. For a log that is to be repaired alone:
/// what stands between is given up.
pub(crate) fn next_record(segment: u32, bytes: &[u8], broken: usize) -> Option<usize> {
    (broken + 1..bytes.len().saturating_sub(FRAME_BYTES)).find(|offset| {
        // As above, the cheap comparison goes first: no record begins before its own batch.
        parse_frame(bytes, *offset).is_some_and(|framed| framed.batch as usize <= *offset)
            && read_frame(segment, bytes, *offset).is_some()
    })
}

/// Parses a frame without looking at its checksum. Bytes that are no record give any lengths, so
/// all arithmetic is checked.
fn parse_frame(bytes: &[u8], offset: usize) -> Option<Framed> {
    let start = offset.checked_add(FRAME_BYTES)?;
    if start > bytes.len() {
        return None;
    }
    let len = u32_at(bytes, offset) as usize;
    let payload = start..start.checked_add(len)?;
    let sane = len > 0 && len <= PAYLOAD_BYTES_MAX && payload.end <= bytes.len();
    sane.then(|| Framed { batch: u32_at(bytes, offset + 8), payload })
}

fn checksum(segment: u32, batch: u32, payload: &[u8]) -> u32 {
    // The length is not in it: a wrong length takes other bytes for the payload, which do not
    // match.
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&segment.to_le_bytes());
    hasher.update(&batch.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
