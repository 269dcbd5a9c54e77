//! A tenant's event log: read in pages, or followed.
//!
//! Who follows the log reads pages of it, and waits when it has read all. Nothing is kept for a follower
//! but the place of its last event, so that a slow one costs no memory, and one that comes back to
//! another node goes on where it was. While it waits it holds no place in the tenant's mailbox and does not
//! keep the tenant awake; each event wakes all followers, of which few look at a time.
//!
//! **The race.** An event may come between the look that finds none and the wait. A follower therefore
//! begins to listen, then looks, then waits: what comes after the look wakes it.
//!
//! Invariant: an event is given once a quorum has it, for replicas apply nothing else; and only while this
//! node leads the tenant's group, as far as it knows: before each look it asks itself, and a change of the lead
//! is one of the things that wake a follower.
//!
//! What is not done: after a repair or a recovery by force the log may be shorter than what a reader has seen. It
//! then waits until the log has passed its number.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::futures::OwnedNotified;
use tokio::time::{Instant, timeout_at};

use super::{Call, TenantHandle, Tenants};
use crate::cluster::routing::Lead;
use crate::command::Refusal;
use crate::domain::ids::TenantId;
use crate::domain::page::PageBudget;
use crate::ports::error::CallError;
use crate::state::tenant::{EventPage, EventPlace};

/// Events that a follower is given at once at most.
const FOLLOWED_EVENTS_MAX: usize = 256;
/// Bytes of them, unless a single one has more.
const FOLLOWED_BYTES_MAX: usize = 64 << 10;
/// Longest time for a follower's look at the log.
const LOOK_MAX: Duration = Duration::from_secs(5);

impl TenantHandle {
    /// Reads events behind a place, as many as `room` has room for.
    ///
    /// # Errors
    /// When the tenant's files cannot be read, or no answer came by the deadline.
    pub async fn events(
        &self,
        call: &Call,
        place: EventPlace,
        room: PageBudget,
    ) -> Result<EventPage, CallError> {
        self.catch_up(call).await?;
        let read = self.read(call, move |reader| {
            let page = reader.state.events_after(reader.rows, place, room);
            page.inspect_err(|error| reader.note_damage(error))
        });
        Ok(read.await??)
    }
}

/// Follows a tenant's events.
pub struct EventFollower {
    tenants: Tenants,
    tenant: TenantId,
    call: Call,
    place: EventPlace,
    /// Goes off when there may be more events than were read.
    news: Option<Pin<Box<OwnedNotified>>>,
}

impl Tenants {
    /// Follows the events of a tenant behind number `after`. Nothing is read yet.
    pub fn follow(&self, call: Call, tenant: TenantId, after: u64) -> EventFollower {
        EventFollower { tenants: self.clone(), tenant, call, place: after.into(), news: None }
    }
}

impl EventFollower {
    /// Waits for the next events. Dropped before it is done it has given none.
    ///
    /// # Errors
    /// When the tenant is not served here any more, or its log cannot be read: the reader goes on elsewhere, or
    /// later.
    pub async fn next(&mut self) -> Result<EventPage, CallError> {
        loop {
            if let Some(news) = &mut self.news {
                news.as_mut().await;
                self.news = None;
            }
            let (page, news) = self.look().await?;
            if !page.events.is_empty() {
                self.place = page.end;
                return Ok(page);
            }
            self.news = Some(news);
        }
    }

    /// Looks for events, after it has begun to listen for later ones.
    async fn look(&mut self) -> Result<(EventPage, Pin<Box<OwnedNotified>>), CallError> {
        self.call.deadline = Instant::now() + LOOK_MAX;
        // Before the tenant is asked for: a node that has left its group must not make room for it again.
        let placed = self.tenants.0.directory.get(self.tenant).ok_or(Refusal::TenantNotFound)?;
        self.check_lead()?;
        let activation = self.tenants.activation(self.tenant, placed)?;
        let looks = timeout_at(self.call.deadline, activation.followers_look.acquire()).await;
        // It is never closed.
        let Ok(Ok(_look)) = looks else { return Err(CallError::Busy) };
        let mut news = Box::pin(Arc::clone(&activation.news).notified_owned());
        news.as_mut().enable();
        let tenant = self.tenants.handle(self.call.deadline, self.tenant).await?;
        let room = PageBudget::new(FOLLOWED_EVENTS_MAX).within(FOLLOWED_BYTES_MAX);
        Ok((tenant.events(&self.call, self.place, room).await?, news))
    }

    /// Refuses where the tenant is known to be led elsewhere by now. A tenant that sleeps wakes nobody when that
    /// changes: whoever waits for long asks now and then.
    ///
    /// # Errors
    /// When this node does not lead it, or knows of no such tenant.
    pub fn check_lead(&self) -> Result<(), CallError> {
        let placed = self.tenants.0.directory.get(self.tenant).ok_or(Refusal::TenantNotFound)?;
        match self.tenants.0.router.lead(placed.group) {
            Lead::Here => Ok(()),
            Lead::There(_) | Lead::Unknown => Err(CallError::NoLeader),
        }
    }
}
