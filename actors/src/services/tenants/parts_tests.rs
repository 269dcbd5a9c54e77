//! Which replicas are in a snapshot, on a node with files of a tenant that group 0 does not know.

use tokio::sync::watch;

use super::*;
use crate::cluster::routing::{Directory, TenantLocation};
use crate::command::{Envelope, Outcome};
use crate::domain::ids::{Epoch, Position};
use crate::ports::{
    ApplySink as _, BoxFuture, DumpPart, Leadership, Place, Proposals, ProposeError, Staging,
    Store, Stores,
};
use crate::replica::ReplicaDeps;
use crate::services::puppet::puppet;
use crate::services::tenants::{ActivationState, TENANT_CALLS_MAX};
use crate::testing::{AnyLog, tenant};

const GROUP: GroupId = GroupId(3);

/// A log of which group 0 can be read as long as there is a quorum.
struct Quorum(bool);

impl Proposals for Quorum {
    fn propose(&self, _: GroupId, _: Envelope) -> BoxFuture<'_, Result<Outcome, ProposeError>> {
        unreachable!()
    }
    fn read_index(&self, _: GroupId) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(async { if self.0 { Ok(()) } else { Err(ProposeError::NoLeader) } })
    }
    fn leadership(&self, _: GroupId) -> Option<watch::Receiver<Leadership>> {
        None
    }
    fn leads(&self, _: GroupId) -> Option<u64> {
        None
    }
}

/// Has files of these tenants.
struct Files(Vec<TenantId>);

impl Stores for Files {
    fn open(&self, _: StateMachineId) -> BoxFuture<'_, Result<Box<dyn Store>, StoreError>> {
        unreachable!()
    }
    fn exists(&self, _: StateMachineId) -> Result<bool, StoreError> {
        Ok(true)
    }
    fn remove(&self, _: TenantId) -> BoxFuture<'_, Result<(), StoreError>> {
        unreachable!()
    }
    fn stage(
        &self,
        _: StateMachineId,
        _: u64,
    ) -> BoxFuture<'_, Result<Box<dyn Staging>, StoreError>> {
        unreachable!()
    }
    fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        Ok(self.0.clone())
    }
    fn tenants_with_work(&self) -> BoxFuture<'_, Result<Vec<TenantId>, StoreError>> {
        unreachable!()
    }
}

/// Files of nothing.
#[derive(Debug)]
struct NoFiles;

impl Staging for NoFiles {
    fn put(&mut self, _: DumpPart) -> BoxFuture<'_, Result<(), StoreError>> {
        unreachable!()
    }
    fn seal(&mut self, _: Position) -> BoxFuture<'_, Result<(), StoreError>> {
        unreachable!()
    }
    fn events_len(&self) -> u64 {
        0
    }
    fn install(self: Box<Self>, _: Place) -> BoxFuture<'static, Result<(), StoreError>> {
        unreachable!()
    }
}

/// A node with files of three tenants: the first is known, the second will be, the third never.
async fn registry(has_quorum: bool) -> (Registry, (ReplicaDeps, Arc<dyn Proposals>)) {
    let (registry, directory) = (Registry::default(), Arc::new(Directory::default()));
    directory.set(tenant(1), Some(TenantLocation { group: GROUP, epoch: Epoch(1) }));
    // Learns of a tenant with the next question.
    let control = puppet(Arc::clone(&directory), |directory: &mut Arc<Directory>, message| {
        directory.set(tenant(2), Some(TenantLocation { group: GROUP, epoch: Epoch(1) }));
        if let ControlMessage::Applied(reply) = message {
            let _ = reply.send(1);
        }
    });
    let control = control.await;
    let supervisor = puppet((), |(): &mut (), _| {}).await;
    let stores = Arc::new(Files([1, 2, 3].map(tenant).to_vec()));
    let deps = ReplicaDeps { log: Arc::new(AnyLog), stores };
    let proposals: Arc<dyn Proposals> = Arc::new(Quorum(has_quorum));
    registry.set_supervisor(supervisor, &deps, &proposals, directory);
    registry.set_control(control);
    (registry, (deps, proposals))
}

#[tokio::test]
async fn a_tenant_that_group_0_does_not_know_keeps_no_snapshot_from_being_sent() {
    let (registry, _log) = registry(true).await;
    let parts = registry.list_parts(GROUP).await.expect("they are listed");
    assert_eq!(parts, [1, 2].map(|number| StateMachineId::Tenant(tenant(number))));
    assert_eq!(*registry.unknown.lock().unwrap(), BTreeSet::from([tenant(3)]));
}

#[tokio::test]
async fn while_group_0_cannot_be_asked_no_tenant_is_taken_for_unknown() {
    let (registry, _log) = registry(false).await;
    assert!(registry.list_parts(GROUP).await.is_err());
    assert!(registry.unknown.lock().unwrap().is_empty());
}

#[tokio::test]
async fn while_the_control_planes_files_are_damaged_it_holds_nothing_and_what_comes_is_passed_on() {
    let (group, part) = (GroupId::SYSTEM, StateMachineId::System);
    let registry = Registry::default();
    let mut copies = registry.want_control();
    assert_eq!(registry.held(group, part).await.expect("it holds nothing"), Held::default());
    let position = Position { term: 1, index: 9 };
    let staged = Staged { position, events_from: 0, files: Box::new(NoFiles) };
    let (installed, ()) = tokio::join!(registry.install(group, part, staged), async {
        let copy = copies.recv().await.expect("a copy");
        assert_eq!(copy.staged.position, position);
        let _ = copy.taken.send(Err(StoreError::Full));
    });
    assert!(matches!(installed, Err(StoreError::Full)), "as whoever took it says");
}

#[tokio::test]
async fn clients_that_take_all_places_of_a_tenant_keep_no_other_replica_from_catching_up() {
    let (registry, _log) = registry(true).await;
    let held = Held { position: Some(Position { term: 1, index: 9 }), events: 44 };
    let actor = puppet(held, |held, message| {
        if let TenantMessage::Replica(ReplicaRequest::Held(reply)) = message {
            let _ = reply.send(Ok(*held));
        }
    });
    let actor = actor.await;
    let activation = registry.activation(GROUP, tenant(1)).expect("the supervisor is set");
    activation.state.send_replace(ActivationState::Running(actor));
    let permits: Vec<_> = std::iter::from_fn(|| activation.permit().ok()).collect();
    assert_eq!(permits.len(), TENANT_CALLS_MAX);
    let part = StateMachineId::Tenant(tenant(1));
    assert_eq!(registry.held(GROUP, part).await.expect("it is told"), held);
    drop(permits);
    assert!(!activation.is_called(), "it may sleep");
    let permit = activation.replica_permit().expect("nobody has one");
    assert!(activation.is_called(), "it may not");
    drop(permit);
}
