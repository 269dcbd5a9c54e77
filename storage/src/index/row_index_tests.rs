//! An index of an earlier format, and one that is damaged.

use super::*;
use crate::disk::{OpenMode, SimDisk};

/// Makes an index as the first format wrote it.
fn bare(disk: &SimDisk, rows: u32, state: State) {
    let file = disk.mount().open("index.redb", OpenMode::CreateNew).unwrap();
    let index = RowIndex::open_any("index.redb", file).unwrap();
    let written = index.write(|transaction| {
        let mut table = transaction.open_table(ROWS)?;
        for number in 0..rows {
            let row = number.to_be_bytes();
            table.insert(&row[..], &row[..2])?;
        }
        let mut meta = transaction.open_table(META)?;
        meta.insert(META_FORMAT, &FORMAT_WITHOUT_CHECKSUMS.to_le_bytes()[..])?;
        meta.insert(META_STATE, &encode_state(state)[..])?;
        Ok(())
    });
    written.unwrap();
}

/// A file that is cut, overwritten or rotten is an error or, where the bytes mean nothing, the same as it
/// was: never a panic, and never other rows.
#[test]
fn a_damaged_index_is_told_from_a_whole_one() {
    let (position, log) = (Position { term: 2, index: 40 }, Uuid::from_u128(3));
    let disk = SimDisk::new(1);
    let file = disk.mount().open("index.redb", OpenMode::CreateNew).unwrap();
    let index = RowIndex::create("index.redb", file, Some(log)).unwrap();
    let rows: Vec<Row> =
        (0..300_u32).map(|at| (at.to_be_bytes().to_vec(), Some(vec![7; 40]))).collect();
    index.commit(&rows, State { position, events_len: 0 }).unwrap();
    drop(index);
    let whole = disk.mount().open("index.redb", OpenMode::Existing).unwrap();
    let mut bytes = vec![0; usize::try_from(whole.len().unwrap()).unwrap()];
    whole.read_at(0, &mut bytes).unwrap();
    let read = |bytes: &[u8]| {
        let disk = SimDisk::new(2);
        let file = disk.mount().open("index.redb", OpenMode::CreateNew).unwrap();
        file.write_at(0, bytes).unwrap();
        let (index, state) = RowIndex::open("index.redb", file, Some(log))?;
        let found = index.scan(&[], &[0xff; 8], usize::MAX, false);
        // Closing writes, and not into a file that is damaged.
        index.fence();
        Ok::<_, StoreError>((found?, state))
    };
    let expected = read(&bytes).unwrap();
    let mut damaged = 0;
    for step in 0..400 {
        let at = step * bytes.len() / 400;
        let mut rotten = bytes.clone();
        match step % 3 {
            0 => rotten[at] ^= 1 << (step % 8),
            1 => rotten.truncate(at),
            _ => rotten[at..(at + 64).min(bytes.len())].fill(0xa5),
        }
        match read(&rotten) {
            Ok(found) => assert_eq!(found, expected, "step {step}, byte {at}"),
            Err(StoreError::Damaged { .. }) => damaged += 1,
            Err(error) => panic!("step {step}, byte {at}: {error}"),
        }
    }
    assert!(damaged > 100, "{damaged}");
}

#[test]
fn an_index_without_checksums_is_given_them_once() {
    let rows = 3 * u32::try_from(CHECKSUM_BATCH_ROWS).unwrap() + 5;
    let position = Position { term: 2, index: 40 };
    let state = State { position, events_len: 7 };
    let disk = SimDisk::new(1);
    bare(&disk, rows, state);
    let log = Uuid::from_u128(3);
    for log in [Some(log), Some(log), None] {
        let file = disk.mount().open("index.redb", OpenMode::Existing).unwrap();
        let (index, found) = RowIndex::open("index.redb", file, log).unwrap();
        assert_eq!(found, Some(state));
        let found = index.scan(&[], &[0xff; 8], usize::MAX, false).unwrap();
        assert_eq!(found.len(), rows as usize);
        assert!(found.iter().all(|(key, value)| key[..2] == value[..]));
    }
    let file = disk.mount().open("index.redb", OpenMode::Existing).unwrap();
    let foreign = RowIndex::open("index.redb", file, Some(Uuid::from_u128(4)));
    assert!(matches!(foreign, Err(StoreError::Damaged { .. })), "it belongs to that log now");
}
