//! The plan of a recovery.

use std::collections::BTreeSet;
use std::sync::Arc;

use shiioo_actors::ports::seams::Seams;
use shiioo_storage::disk::SimDisk;
use shiioo_storage::{Executor, StoppedGroup};
use tempfile::TempDir;

use super::*;
use crate::identity::LoadedIdentity;
use crate::seams::OsEntropy;

fn seams() -> (TempDir, NodeSeams) {
    let folder = TempDir::new().unwrap();
    let seams = NodeSeams::real(folder.path()).unwrap();
    (folder, seams)
}

fn member(disk: &dyn Disk, seams: &Seams) -> Identity {
    match Identity::load_or_create(disk, seams, "default", false).unwrap() {
        LoadedIdentity::Member(identity) => *identity,
        LoadedIdentity::Candidate(candidate) => panic!("{candidate:?}"),
    }
}
