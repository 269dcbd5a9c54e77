//! openraft's own suite for log stores and state machines.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use shiioo_actors::domain::ids::GroupId;
use shiioo_actors::ports::{ApplySink, CommittedEntry};
use tempfile::TempDir;

use super::log_store::GroupLog;
use super::progress::GroupProgress;
use super::state_machine::GroupStateMachine;
use super::types::TypeConfig;
use crate::disk::{Disk, RealDisk, SimDisk};
use crate::executor::Executor;
use crate::log::Log;

/// Takes everything and keeps nothing: the suite has no commands, so nothing holds the low-water
/// mark.
struct Nothing;

impl ApplySink for Nothing {
    fn deliver(&self, _group: GroupId, _entry: CommittedEntry) {}
}

fn build(disk: Arc<dyn Disk>, executor: Executor) -> (GroupLog, GroupStateMachine) {
    let group = GroupId(7);
    let log = Log::open(disk, executor).unwrap();
    let progress = Arc::new(GroupProgress::new(group, Arc::clone(&log)));
    let machine = GroupStateMachine::new(group, progress, Arc::new(Nothing));
    (GroupLog::new(group, log), machine)
}

struct OnFiles;

impl StoreBuilder<TypeConfig, GroupLog, GroupStateMachine, TempDir> for OnFiles {
    async fn build(
        &self,
    ) -> Result<(TempDir, GroupLog, GroupStateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let (log, machine) = build(Arc::new(RealDisk::new(dir.path()).unwrap()), Executor::Threads);
        Ok((dir, log, machine))
    }
}

struct Simulated;

impl StoreBuilder<TypeConfig, GroupLog, GroupStateMachine> for Simulated {
    async fn build(&self) -> Result<((), GroupLog, GroupStateMachine), StorageError<TypeConfig>> {
        let (log, machine) = build(SimDisk::new(1).mount(), Executor::Inline);
        Ok(((), log, machine))
    }
}

#[tokio::test]
async fn openrafts_suite_passes_on_files() {
    Suite::test_all(OnFiles).await.unwrap();
}

#[tokio::test]
async fn openrafts_suite_passes_on_the_simulated_disk() {
    Suite::test_all(Simulated).await.unwrap();
}
