//! Bounds the bytes of each tenant that are proposed and not applied yet, and those that begin in a second.
//!
//! All groups of a node write one log, and all tenants of a group share its order: an entry is written,
//! synced and sent behind those that were proposed before it. A tenant with thirty requests of a megabyte
//! under way would put thirty megabytes before the small command of its neighbour. So the large ones of a
//! tenant wait for each other here, before the log has heard of them, and a neighbour's command waits for
//! one of them at most. And they begin at a bounded rate: one after the other without a pause, they would take
//! the processors and the disks of all replicas, and the neighbour would meet one with each of its commands.
//! Small ones never wait. Neither do commands that the tenant did not ask for, a change of its record or a
//! piece of its move: else a tenant could delay its own suspension.
//!
//! Whoever has waited for [`WAIT_MAX`] is refused: a command says when it was made, and the tenant's clock
//! must not follow one that was made long ago.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shiioo_actors::command::{Command, Envelope, TenantCommand};
use shiioo_actors::domain::codec;
use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::ports::ProposeError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The shortest command that waits for others, bytes.
const LARGE_BYTES: usize = 64 << 10;

/// Most KiB of one tenant that are under way; a command that is longer by itself is under way alone.
const TENANT_KIB_MAX: u32 = 1024;

/// KiB of one tenant's large commands that may begin in a second, once [`BURST`] is used up.
const TENANT_KIB_PER_SEC: u32 = 8 << 10;

/// How far a tenant may be ahead of its rate: 4 MiB.
const BURST: Duration = Duration::from_millis(500);

/// Longest wait of a command.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The tenants that have, or had a moment ago, something under way, each with its share.
#[derive(Debug, Clone, Default)]
pub(super) struct ProposedBytes(Arc<Mutex<BTreeMap<TenantId, Share>>>);

#[derive(Debug)]
struct Share {
    free_kib: Arc<Semaphore>,
    /// Commands that are under way or wait.
    commands: usize,
    /// When everything that has begun would have ended at the tenant's rate.
    paid_at: Instant,
}

/// Says that a command is under way or waits, until it is dropped.
#[derive(Debug)]
struct Counted {
    all: ProposedBytes,
    tenant: TenantId,
}

/// A command's part of its tenant's share, until it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    _kib: OwnedSemaphorePermit,
    _counted: Counted,
}

impl ProposedBytes {
    /// Waits until the command's tenant has room for it and may begin it. `None` for one that needs none.
    ///
    /// # Errors
    /// When that is not so within [`WAIT_MAX`].
    pub async fn room_for(&self, envelope: &Envelope) -> Result<Option<Room>, ProposeError> {
        let Command::Tenant { tenant, command, .. } = &envelope.command else { return Ok(None) };
        let bytes = codec::encoded_len(envelope);
        let is_asked_by_tenant = !matches!(command, TenantCommand::Set(_) | TenantCommand::Move(_));
        if bytes < LARGE_BYTES || !is_asked_by_tenant {
            return Ok(None);
        }
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
        let under_way = kib.min(TENANT_KIB_MAX);
        let (free_kib, counted) = self.count(*tenant);
        let deadline = Instant::now() + WAIT_MAX;
        let Ok(Ok(room)) =
            tokio::time::timeout_at(deadline, free_kib.acquire_many_owned(under_way)).await
        else {
            // Nobody closes the semaphore.
            return Err(ProposeError::Busy);
        };
        let room = Room { _kib: room, _counted: counted };
        let turn = self.turn(*tenant, kib, deadline).ok_or(ProposeError::Busy)?;
        if turn > Instant::now() {
            tokio::time::sleep_until(turn).await;
        }
        Ok(Some(room))
    }

    /// Says when the tenant's rate lets a command begin. `None` when that is after the deadline: then the
    /// command does not count.
    fn turn(&self, tenant: TenantId, kib: u32, deadline: Instant) -> Option<Instant> {
        let mut shares = self.0.lock();
        let share = shares.get_mut(&tenant)?;
        let now = Instant::now();
        let paid_at = share.paid_at.max(now);
        // An instant that the clock cannot show is long ago.
        let turn = now.max(paid_at.checked_sub(BURST).unwrap_or(now));
        (turn <= deadline).then(|| {
            share.paid_at = paid_at + Duration::from_secs(1) * kib / TENANT_KIB_PER_SEC;
            turn
        })
    }

    fn count(&self, tenant: TenantId) -> (Arc<Semaphore>, Counted) {
        let mut shares = self.0.lock();
        let now = Instant::now();
        // A share outlives its commands for as long as they count, or who comes again would begin anew.
        shares.retain(|_, share| share.commands > 0 || share.paid_at > now);
        let new = || {
            let free_kib = Arc::new(Semaphore::new(TENANT_KIB_MAX as usize));
            Share { free_kib, commands: 0, paid_at: now }
        };
        let share = shares.entry(tenant).or_insert_with(new);
        share.commands += 1;
        (Arc::clone(&share.free_kib), Counted { all: self.clone(), tenant })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut shares = self.all.0.lock();
        let Some(share) = shares.get_mut(&self.tenant) else { return };
        share.commands -= 1;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use shiioo_actors::command::{MoveTenant, MovedPiece};
    use shiioo_actors::testing::{tenant_envelope, text_envelope};
    use uuid::Uuid;

    use super::*;

    fn of(tenant: u128, kib: usize) -> Envelope {
        text_envelope(TenantId::from_uuid(Uuid::from_u128(tenant)), "r".repeat(kib << 10))
    }

    /// Asks for room, and gets it if there is some now.
    fn room(all: &ProposedBytes, envelope: &Envelope) -> Option<Room> {
        all.room_for(envelope).now_or_never()?.expect("room at once")
    }

    #[tokio::test]
    async fn the_large_ones_of_a_tenant_wait_for_each_other_and_nobody_else_does() {
        let all = ProposedBytes::default();
        let (small, half, huge) = (of(1, 60), of(1, 511), of(1, 5_000));
        let halves = [room(&all, &half).unwrap(), room(&all, &half).unwrap()];
        assert!(room(&all, &half).is_none(), "its share is used up");
        assert!(room(&all, &of(2, 900)).is_some(), "another tenant");
        assert!(all.room_for(&small).now_or_never().unwrap().unwrap().is_none(), "needs no room");
        let [first, second] = halves;
        drop(first);
        assert!(room(&all, &huge).is_none());
        drop(second);
        let _alone = room(&all, &huge).expect("longer than a share, and alone");
        assert!(room(&all, &of(1, 65)).is_none());
        let moved = MovedPiece {
            number: 0,
            rows: Vec::new(),
            begun: vec![0; 1 << 20],
            events: Vec::new(),
            is_last: false,
        };
        let moved = TenantCommand::Move(MoveTenant::TakeIn(moved));
        let moved = tenant_envelope(TenantId::from_uuid(Uuid::from_u128(1)), moved);
        assert!(
            all.room_for(&moved).now_or_never().unwrap().unwrap().is_none(),
            "it is not its own"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_large_ones_of_a_tenant_begin_at_its_rate() {
        let (all, began) = (ProposedBytes::default(), Instant::now());
        let large = of(1, 900);
        // The burst, and what the rate gives in two seconds.
        for _ in 0..22 {
            drop(all.room_for(&large).await.unwrap());
        }
        let took = began.elapsed();
        assert!((1_800..2_100).contains(&took.as_millis()), "{took:?}");
        drop(all.room_for(&of(2, 900)).await.unwrap());
        assert_eq!(began.elapsed(), took, "another tenant has a rate of its own");
        let crowd = (0..20).map(|_| async { all.room_for(&large).await.map(drop) });
        let crowd = futures_util::future::join_all(crowd).await;
        let refused = crowd.iter().filter(|it| **it == Err(ProposeError::Busy)).count();
        assert!((8..14).contains(&refused), "what the rate gives in a second: {refused}");
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(all.room_for(&of(3, 900)).await.unwrap());
        assert_eq!(all.0.lock().len(), 1, "nothing is kept of who has begun nothing for long");
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_that_is_longer_than_a_share_counts_as_long_as_it_is() {
        let (all, began) = (ProposedBytes::default(), Instant::now());
        let huge = of(1, 4 << 10);
        let mut turns = Vec::new();
        for _ in 0..4 {
            drop(all.room_for(&huge).await.unwrap());
            turns.push(began.elapsed().as_millis());
        }
        assert!(turns[1] < 10 && (490..510).contains(&turns[2]), "{turns:?}");
        assert!((990..1_010).contains(&turns[3]), "half a second each: {turns:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_long_is_refused_and_who_goes_keeps_nobody_waiting() {
        let all = ProposedBytes::default();
        let (large, medium) = (of(1, 900), of(1, 100));
        let first = all.room_for(&large).await.unwrap();
        assert_eq!(all.room_for(&large).await.unwrap_err(), ProposeError::Busy);
        let mut second = Box::pin(all.room_for(&large));
        assert!(second.as_mut().now_or_never().is_none());
        let mut third = Box::pin(all.room_for(&medium));
        assert!(third.as_mut().now_or_never().is_none(), "first come, first served");
        drop(second);
        assert!(third.await.unwrap().is_some());
        drop(first);
        assert!(all.0.lock().values().all(|share| share.commands == 0));
    }
}
