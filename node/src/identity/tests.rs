//! The identity under power cuts, flipped bits and older versions.

use std::sync::Arc;

use shiioo_actors::domain::region::Region;
use shiioo_storage::disk::{OpenMode, SimDisk, write_durably};

use super::file::{CandidateFile, FORMAT_NAMELESS, IdentityFile, write_json};
use super::*;
use crate::seams::{OsEntropy, SystemClock};

fn seams() -> Seams {
    let entropy = Arc::new(OsEntropy::new().unwrap());
    Seams { clock: Arc::new(SystemClock), entropy }
}

fn member(disk: &dyn Disk) -> Result<Identity, IdentityError> {
    match Identity::load_or_create(disk, &seams(), &Region::default(), false)? {
        LoadedIdentity::Member(identity) => Ok(*identity),
        LoadedIdentity::Candidate(candidate) => panic!("{candidate:?}"),
    }
}

fn candidate(disk: &dyn Disk) -> Result<Candidate, IdentityError> {
    match Identity::load_or_create(disk, &seams(), &Region::default(), true)? {
        LoadedIdentity::Candidate(candidate) => Ok(candidate),
        LoadedIdentity::Member(identity) => panic!("{identity:?}"),
    }
}

#[test]
fn an_identity_is_made_once_and_survives_a_power_cut_at_any_moment() {
    for ops in 0..20 {
        let disk = SimDisk::new(ops);
        disk.cut_power_after(ops);
        let made = member(&*disk.mount());
        if !disk.take_ended() {
            disk.cut_power();
        }
        let found = member(&*disk.mount()).unwrap();
        if let Ok(made) = made {
            assert_eq!(found, made, "cut after {ops}");
        }
        assert_eq!(found, member(&*disk.mount()).unwrap());
    }
}

#[test]
fn a_candidate_is_the_same_until_it_is_a_member() {
    let disk = SimDisk::new(1);
    let first = candidate(&*disk.mount()).unwrap();
    disk.cut_power();
    assert_eq!(candidate(&*disk.mount()).unwrap(), first);
    let elsewhere = Identity::found(&seams(), &Region::default()).unwrap();
    let identity = Identity { node_id: first.node_id, key: first.key, ..elsewhere };
    identity.store(&*disk.mount()).unwrap();
    disk.cut_power();
    // Whether it is told to join or not: it belongs to a cluster now.
    assert_eq!(member(&*disk.mount()).unwrap(), identity);
    let again =
        Identity::load_or_create(&*disk.mount(), &seams(), &Region::default(), true).unwrap();
    assert!(matches!(again, LoadedIdentity::Member(found) if *found == identity));
    assert!(!disk.mount().exists(CANDIDATE_FILE).unwrap());
}

/// Flips a bit of each byte of a file: all bits would take a while and show no more.
fn check_flips<T: PartialEq + std::fmt::Debug>(
    file: &str,
    read: impl Fn(&dyn Disk) -> Result<T, IdentityError>,
) {
    let disk = SimDisk::new(1);
    let made = read(&*disk.mount()).unwrap();
    let len = read_small(&*disk.mount(), file).unwrap().unwrap().len() as u64;
    for offset in 0..len {
        let bit = u8::try_from(offset % 8).unwrap();
        disk.flip_bit(file, offset, bit);
        // A flip in the white space or in the case of a hexadecimal digit says the same.
        if let Ok(found) = read(&*disk.mount()) {
            assert_eq!(found, made, "byte {offset}, bit {bit}");
        }
        disk.flip_bit(file, offset, bit);
    }
}

#[test]
fn every_flipped_bit_is_noticed_or_does_not_matter() {
    check_flips(IDENTITY_FILE, member);
    check_flips(CANDIDATE_FILE, candidate);
}

/// Files of the first version: the identity names no log, the candidate has no checksum.
#[test]
fn the_first_version_is_read() {
    let disk = SimDisk::new(1);
    let made = candidate(&*disk.mount()).unwrap();
    let old = CandidateFile {
        format_version: FORMAT_NAMELESS,
        node_id: made.node_id.to_string(),
        region: made.region.clone(),
        key: hex::encode(made.key.der()),
        crc32: None,
    };
    write_json(&*disk.mount(), CANDIDATE_FILE, &old).unwrap();
    assert_eq!(candidate(&*disk.mount()).unwrap(), made);

    let disk = SimDisk::new(1);
    let made = member(&*disk.mount()).unwrap();
    let bytes = read_small(&*disk.mount(), IDENTITY_FILE).unwrap().unwrap();
    let now: IdentityFile = serde_json::from_slice(&bytes).unwrap();
    let old = IdentityFile { format_version: FORMAT_NAMELESS, ..now };
    let old = IdentityFile { crc32: old.checksum(), ..old };
    write_json(&*disk.mount(), IDENTITY_FILE, &old).unwrap();
    assert_eq!(member(&*disk.mount()).unwrap(), made);
}

#[test]
fn an_identity_remembers_its_log() {
    let disk = SimDisk::new(1);
    let made = member(&*disk.mount()).unwrap();
    let named = Identity { log_id: Some(Uuid::from_u128(9)), ..made };
    named.store(&*disk.mount()).unwrap();
    disk.cut_power();
    assert_eq!(member(&*disk.mount()).unwrap(), named);
}

#[test]
fn an_identity_remembers_what_it_was_and_every_flipped_bit_of_that_is_noticed() {
    let disk = SimDisk::new(1);
    let made = member(&*disk.mount()).unwrap();
    let former = Former { certificate: vec![1; 40], authority: vec![2; 40] };
    let recovered = Identity { former: Some(former), ..made };
    recovered.store(&*disk.mount()).unwrap();
    disk.cut_power();
    assert_eq!(member(&*disk.mount()).unwrap(), recovered);
    let bytes = read_small(&*disk.mount(), IDENTITY_FILE).unwrap().unwrap();
    let at = String::from_utf8(bytes).unwrap().find(&"01".repeat(40)).unwrap();
    disk.flip_bit(IDENTITY_FILE, at as u64 + 1, 1);
    assert!(matches!(member(&*disk.mount()), Err(IdentityError::Damaged(_))));
}

#[test]
fn a_directory_that_is_being_recovered_does_not_start() {
    let disk = SimDisk::new(1);
    member(&*disk.mount()).unwrap();
    write_durably(&*disk.mount(), RECOVERY_FILE, b"{}").unwrap();
    let error = member(&*disk.mount()).unwrap_err().to_string();
    assert!(error.contains("recover --force"), "{error}");
}

#[test]
fn what_is_no_identity_is_refused() {
    for (text, expected) in [
        ("", "damaged"),
        ("{\"format_version\":1}", "damaged"),
        ("{\"format_version\":4,\"who\":1}", "format version 4"),
    ] {
        let disk = SimDisk::new(1).mount();
        disk.create_dir_all(IDENTITY_DIR).unwrap();
        write_durably(&*disk, IDENTITY_FILE, text.as_bytes()).unwrap();
        let error = member(&*disk).unwrap_err().to_string();
        assert!(error.contains(IDENTITY_FILE) && error.contains(expected), "{error}");
    }
}

#[test]
fn a_node_stays_in_its_region() {
    let disk = SimDisk::new(1).mount();
    let region = |text: &str| Region::try_from(text.to_owned()).unwrap();
    Identity::load_or_create(&*disk, &seams(), &region("eu"), false).unwrap();
    let error = Identity::load_or_create(&*disk, &seams(), &region("us"), false).unwrap_err();
    assert!(error.to_string().contains("--region eu"), "{error}");
}

#[test]
fn data_without_an_identity_is_refused() {
    let disk = SimDisk::new(1).mount();
    disk.open("system.redb", OpenMode::CreateNew).unwrap();
    let error = member(&*disk).unwrap_err().to_string();
    assert!(error.contains("system.redb"), "{error}");
    assert!(!disk.exists(IDENTITY_FILE).unwrap());
}

#[test]
fn the_next_identity_waits_beside_the_own_one_until_it_takes_its_place() {
    let disk = SimDisk::new(1);
    let own = member(&*disk.mount()).unwrap();
    assert_eq!(Identity::load_next(&*disk.mount()).unwrap(), None);
    let next = Identity::found(&seams(), &Region::default()).unwrap();
    next.store_as_next(&*disk.mount()).unwrap();
    disk.cut_power();
    assert_eq!(Identity::load_next(&*disk.mount()).unwrap(), Some(next.clone()));
    assert_eq!(member(&*disk.mount()).unwrap(), own);
    // One that rots is asked for again.
    disk.flip_bit(NEXT_FILE, 40, 0);
    assert_eq!(Identity::load_next(&*disk.mount()).unwrap(), None);
    next.store_as_next(&*disk.mount()).unwrap();
    next.store(&*disk.mount()).unwrap();
    assert_eq!(member(&*disk.mount()).unwrap(), next);
    assert_eq!(Identity::load_next(&*disk.mount()).unwrap(), None);
}
