//! The lock manager over a log that goes no further.

use std::future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use ractor::Actor as _;
use tokio::sync::watch;

use super::actor::{LockActor, LockArguments};
use super::*;
use crate::command::{Command, Envelope, Outcome, SystemCommand};
use crate::domain::lock::FencingToken;
use crate::domain::time::Timestamp;
use crate::ports::{BoxFuture, Leadership, Proposals, ProposeError};
use crate::testing::fixed_seams;

/// A log in which no expiry ever comes to be.
#[derive(Default)]
struct Stuck {
    renewed: Mutex<Vec<LockCommand>>,
    is_expiring: AtomicBool,
}

impl Proposals for Stuck {
    fn propose(
        &self,
        _: GroupId,
        envelope: Envelope,
    ) -> BoxFuture<'_, Result<Outcome, ProposeError>> {
        let Command::System(SystemCommand::Lock(command)) = envelope.command else {
            panic!("no command of a lock");
        };
        if matches!(command, LockCommand::Expire { .. }) {
            self.is_expiring.store(true, Ordering::Relaxed);
            return Box::pin(future::pending());
        }
        self.renewed.lock().unwrap().push(command);
        Box::pin(future::ready(Ok(Outcome::Locked(lock()))))
    }

    fn read_index(&self, _: GroupId) -> BoxFuture<'_, Result<(), ProposeError>> {
        unreachable!()
    }

    fn leadership(&self, _: GroupId) -> Option<watch::Receiver<Leadership>> {
        None
    }

    fn leads(&self, _: GroupId) -> Option<u64> {
        Some(1)
    }
}

fn lock() -> LockView {
    LockView {
        key: "k".into(),
        holder: "a".into(),
        token: FencingToken(1),
        renewal: 0,
        ttl_ms: 1000,
        acquired_at: Timestamp(0),
        expires_at: Timestamp(1000),
        metadata: Json::null(),
    }
}

async fn manager(log: Arc<Stuck>) -> LockManager {
    let arguments = LockArguments { log, seams: fixed_seams(Timestamp(5000)) };
    let (actor, _) = LockActor::spawn(None, LockActor, arguments).await.unwrap();
    LockManager::new(actor)
}

/// A leader that refuses because its own timer has fired may lose the lead before the expiry counts:
/// then the lock was not lost.
#[tokio::test(start_paused = true)]
async fn a_renewal_is_decided_in_the_log_also_when_its_time_is_over() {
    let log = Arc::new(Stuck::default());
    let locks = manager(log.clone()).await;
    locks.lead(Space::CLUSTER, vec![lock()]);
    while !log.is_expiring.load(Ordering::Relaxed) {
        tokio::time::advance(Duration::from_millis(100)).await;
        tokio::task::yield_now().await;
    }
    let cause = Cause { who: "admin".into(), request_id: String::new() };
    let deadline = Instant::now() + Duration::from_secs(5);
    let request = ("k".into(), "a".into(), Some(FencingToken(1)), None);
    let renewed = locks.renew(Space::CLUSTER, cause, deadline, request).await;
    assert_eq!(renewed.unwrap().token, FencingToken(1));
    assert_eq!(log.renewed.lock().unwrap().len(), 1);
}

/// A leader gives each lease anew: what was said of its end before would be shown to be over.
#[tokio::test(start_paused = true)]
async fn the_end_that_is_shown_is_that_of_the_lease_of_this_leader() {
    let locks = manager(Arc::default()).await;
    let shown = async |lock: LockView| {
        let looked =
            locks.look(Space::CLUSTER, vec![lock], Instant::now() + Duration::from_secs(1));
        looked.await.unwrap().pop().unwrap().0.expires_at
    };
    assert_eq!(shown(lock()).await, Timestamp(1000), "a node that does not lead knows the table");
    locks.lead(Space::CLUSTER, vec![lock()]);
    assert_eq!(shown(lock()).await, Timestamp(6000), "its clock says 5 s, and the lease has 1 s");
    let renewed = LockView { renewal: 1, expires_at: Timestamp(7000), ..lock() };
    assert_eq!(shown(renewed.clone()).await, Timestamp(7000), "of a later lease it has not heard");
    locks.notice(Space::CLUSTER, LockNotice::Held(renewed.clone()));
    assert_eq!(shown(renewed).await, Timestamp(7000));
}
