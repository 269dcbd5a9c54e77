//! A small file that says which attempts of steps are under way, so that a step that ends the
//! process again and again is found at the next start.
//!
//! The file is never synced: it is for the death of the process, which the page cache outlives.
//! After a power cut it may be old or torn. Each entry has a checksum, and an entry that does not
//! match it is ignored. Whatever is wrong with the file, the node starts: it is a hint.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use shiioo_actors::domain::ids::{RunId, TenantId};
use shiioo_actors::domain::run::StepAttempt;
use shiioo_actors::ports::{Attempt, AttemptJournal, DEATHS_MAX};
use uuid::Uuid;

use crate::disk::{Disk, DiskFile, OpenMode};

/// The file, relative to the data directory.
const FILE: &str = "under_way.bin";
/// The first bytes of the file; the last of them is the version.
const MAGIC: [u8; 8] = *b"SHIIUWY\x01";
/// Offset of the byte that says whether the process has stopped cleanly.
const CLEAN_AT: u64 = 8;
/// Bytes of the head and of each entry.
const ENTRY_BYTES: usize = 64;
/// Entries at most. Fewer attempts than that are under way at once.
const ENTRIES_MAX: usize = 4096;
/// State of an entry whose attempt is performed at the moment.
const UNDER_WAY: u8 = 1;
/// State of an entry whose attempt was under way at a death, and has not been performed since.
const SUSPECTED: u8 = 2;

/// The file, and the deaths that it told of at the start.
#[derive(Debug)]
pub struct UnderWayFile {
    /// Deaths in a row, of attempts that were under way at the last one.
    deaths: Mutex<BTreeMap<Attempt, u32>>,
    slots: Mutex<Slots>,
}

#[derive(Debug)]
struct Slots {
    /// `None` when the file cannot be used. Then nothing is remembered.
    file: Option<Arc<dyn DiskFile>>,
    taken: BTreeMap<Attempt, usize>,
    free: Vec<usize>,
    len: usize,
}

impl UnderWayFile {
    /// Reads which attempts were under way when the process ended, and begins anew. Blocks.
    pub fn open(disk: &dyn Disk) -> Self {
        let mut slots = Slots { file: None, taken: BTreeMap::new(), free: Vec::new(), len: 0 };
        let deaths = match slots.open(disk) {
            Ok(deaths) => deaths,
            Err(error) => {
                tracing::warn!(
                    %error,
                    "cannot use {FILE}: steps that end the process are not found"
                );
                slots.file = None;
                BTreeMap::new()
            }
        };
        Self { deaths: Mutex::new(deaths), slots: Mutex::new(slots) }
    }

    /// Notes that the process stops cleanly. Blocks.
    pub fn close(&self) {
        let slots = self.slots.lock();
        if let Some(file) = &slots.file {
            let _ = file.write_at(CLEAN_AT, &[1]);
        }
    }
}

impl AttemptJournal for UnderWayFile {
    fn deaths(&self, attempt: &Attempt) -> u32 {
        self.deaths.lock().get(attempt).copied().unwrap_or_default()
    }

    fn begin(&self, attempt: &Attempt) {
        let deaths = self.deaths(attempt);
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.slot(*attempt) {
            slots.write(slot, &encode(attempt, UNDER_WAY, deaths));
        }
    }

    fn end(&self, attempt: &Attempt) {
        self.deaths.lock().remove(attempt);
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.taken.remove(attempt) {
            slots.write(slot, &[0; ENTRY_BYTES]);
            slots.free.push(slot);
        }
    }
}

impl Slots {
    fn open(&mut self, disk: &dyn Disk) -> std::io::Result<BTreeMap<Attempt, u32>> {
        let file = disk.open(FILE, OpenMode::OpenOrCreate)?;
        let len = usize::try_from(file.len()?).unwrap_or(usize::MAX);
        let len = len.min((1 + ENTRIES_MAX) * ENTRY_BYTES) / ENTRY_BYTES * ENTRY_BYTES;
        let mut bytes = vec![0; len];
        file.read_at(0, &mut bytes)?;
        let deaths = deaths_in(&bytes);
        let mut bytes = vec![0; ENTRY_BYTES];
        bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
        for (attempt, deaths) in &deaths {
            self.taken.insert(*attempt, self.len);
            self.len += 1;
            bytes.extend(encode(attempt, SUSPECTED, *deaths));
        }
        // Written over in place, and cut after that: a death in between leaves entries that are
        // counted once too often, never too seldom.
        file.write_at(0, &bytes)?;
        file.set_len(bytes.len() as u64)?;
        self.file = Some(file);
        Ok(deaths)
    }

    fn slot(&mut self, attempt: Attempt) -> Option<usize> {
        if let Some(slot) = self.taken.get(&attempt) {
            return Some(*slot);
        }
        let slot = self.free.pop().or_else(|| {
            self.len += 1;
            (self.len <= ENTRIES_MAX).then_some(self.len - 1)
        });
        self.len = self.len.min(ENTRIES_MAX);
        if let Some(slot) = slot {
            self.taken.insert(attempt, slot);
        }
        slot
    }

    fn write(&self, slot: usize, entry: &[u8]) {
        let Some(file) = &self.file else { return };
        if let Err(error) = file.write_at(((1 + slot) * ENTRY_BYTES) as u64, entry) {
            tracing::debug!(%error, "cannot write {FILE}");
        }
    }
}

/// Counts how often in a row each attempt was under way when the process died.
fn deaths_in(bytes: &[u8]) -> BTreeMap<Attempt, u32> {
    let mut entries = bytes.chunks_exact(ENTRY_BYTES);
    let is_clean = match entries.next() {
        Some(head) if head.starts_with(&MAGIC) => head[8] != 0,
        _ => true,
    };
    if is_clean {
        return BTreeMap::new();
    }
    entries.filter_map(decode).collect()
}

fn encode(attempt: &Attempt, state: u8, deaths: u32) -> Vec<u8> {
    let mut entry = Vec::with_capacity(ENTRY_BYTES);
    entry.push(state);
    entry.push(u8::try_from(deaths).unwrap_or(u8::MAX));
    entry.extend(attempt.of.step.to_le_bytes());
    entry.extend(attempt.of.number.to_le_bytes());
    entry.extend(attempt.tenant.uuid().as_bytes());
    entry.extend(attempt.of.run.uuid().as_bytes());
    entry.extend(crc32fast::hash(&entry).to_le_bytes());
    entry.resize(ENTRY_BYTES, 0);
    entry
}

/// Reads an attempt that was under way, with its deaths, this one included.
fn decode(entry: &[u8]) -> Option<(Attempt, u32)> {
    let (body, rest) = entry.split_at_checked(40)?;
    let sum = u32::from_le_bytes(rest.get(..4)?.try_into().ok()?);
    let (state, deaths) = (body[0], u32::from(body[1]));
    if sum != crc32fast::hash(body) || !matches!(state, UNDER_WAY | SUSPECTED) {
        return None;
    }
    let id = |from: usize| Uuid::from_slice(&body[from..from + 16]).ok();
    let of = StepAttempt {
        run: RunId::from_uuid(id(24)?),
        step: u16::from_le_bytes(body[2..4].try_into().ok()?),
        number: u32::from_le_bytes(body[4..8].try_into().ok()?),
    };
    let attempt = Attempt { tenant: TenantId::from_uuid(id(8)?), of };
    let deaths = deaths + u32::from(state == UNDER_WAY);
    Some((attempt, deaths.min(DEATHS_MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn attempt(run: u128, number: u32) -> Attempt {
        let tenant = TenantId::from_uuid(Uuid::from_u128(7));
        let run = RunId::from_uuid(Uuid::from_u128(run));
        Attempt { tenant, of: StepAttempt { run, step: 3, number } }
    }

    #[test]
    fn deaths_in_a_row_are_counted_for_what_was_under_way() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path()).unwrap();
        let (poison, ended, other) = (attempt(1, 1), attempt(2, 1), attempt(3, 1));
        for deaths in 0..DEATHS_MAX {
            // The process dies whenever what is opened here is dropped.
            let file = UnderWayFile::open(&disk);
            assert_eq!(file.deaths(&poison), deaths);
            assert_eq!(file.deaths(&ended), 0);
            file.begin(&ended);
            file.begin(&poison);
            if deaths == 0 {
                file.begin(&other);
            }
            file.end(&ended);
        }
        let file = UnderWayFile::open(&disk);
        assert_eq!(file.deaths(&poison), DEATHS_MAX);
        assert_eq!(file.deaths(&other), 1, "not performed since: neither counted nor forgotten");
        assert_eq!(file.deaths(&attempt(1, 2)), 0, "another attempt");
        file.end(&poison);
        assert_eq!(file.deaths(&poison), 0);
        let file = UnderWayFile::open(&disk);
        assert_eq!(file.deaths(&poison), 0);
    }

    #[test]
    fn a_clean_stop_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path()).unwrap();
        let file = UnderWayFile::open(&disk);
        file.begin(&attempt(1, 1));
        file.close();
        assert_eq!(UnderWayFile::open(&disk).deaths(&attempt(1, 1)), 0);
    }

    #[test]
    fn whatever_is_in_the_file_the_node_starts() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path()).unwrap();
        let file = UnderWayFile::open(&disk);
        (1..=100).for_each(|run| file.begin(&attempt(run, 1)));
        let handle = disk.open(FILE, OpenMode::Existing).unwrap();
        let mut whole = vec![0; usize::try_from(handle.len().unwrap()).unwrap()];
        handle.read_at(0, &mut whole).unwrap();
        assert_eq!(deaths_in(&whole).len(), 100);
        assert_eq!(UnderWayFile::open(&disk).deaths(&attempt(100, 1)), 1);
        let mut torn = whole.clone();
        torn[5 * ENTRY_BYTES + 30] ^= 1;
        torn.truncate(whole.len() - 1);
        assert_eq!(deaths_in(&torn).len(), 98);
        for cut in [0, 1, 7, 8, 63, 64, 65, 200] {
            deaths_in(&whole[..cut]);
        }
        handle.write_at(0, &[0xff; 300]).unwrap();
        assert_eq!(UnderWayFile::open(&disk).deaths(&attempt(1, 1)), 0);
        disk.remove_file(FILE).unwrap();
        disk.create_dir_all(FILE).unwrap();
        let file = UnderWayFile::open(&disk);
        file.begin(&attempt(1, 1));
        file.end(&attempt(1, 1));
        file.close();
    }

    #[test]
    fn places_are_used_again_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path()).unwrap();
        let file = UnderWayFile::open(&disk);
        for round in 0..3_u128 {
            let runs = || (0..ENTRIES_MAX as u128 + 10).map(|run| attempt(round << 64 | run, 1));
            runs().for_each(|attempt| file.begin(&attempt));
            runs().for_each(|attempt| file.end(&attempt));
        }
        let len = disk.open(FILE, OpenMode::Existing).unwrap().len().unwrap();
        assert!(len <= ((1 + ENTRIES_MAX) * ENTRY_BYTES) as u64, "{len}");
        file.begin(&attempt(1, 1));
        assert_eq!(UnderWayFile::open(&disk).deaths(&attempt(1, 1)), 1);
    }
}
