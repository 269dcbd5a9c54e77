//! A tenant's event log: read in pages, or followed.
//!
//! Who follows the log reads pages of it, and waits when it has read all. Nothing is kept for a follower
//! but the number of its last event, so that a slow one costs no memory, and one that comes back to
//! another node goes on where it was. While it waits it holds neither a place in the tenant's mailbox nor
//! the tenant awake.
//!
//! **The race.** An event may come between the look that finds none and the wait. A follower therefore
//! begins to listen, then looks, then waits: what comes after the look wakes it.
//!
//! Invariant: an event is given once a quorum has it, for replicas apply nothing else; and only while this
//! node leads the tenant's group, for another would know of it later.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::futures::OwnedNotified;
use tokio::time::Instant;

use super::{Call, TenantHandle, Tenants};
use crate::cluster::routing::Lead;
use crate::domain::ids::TenantId;
use crate::domain::page::PageBudget;
use crate::ports::StoreError;
use crate::ports::error::CallError;
use crate::services::tenants::TenantReader;
use crate::state::tenant::EventPage;

/// Events that a follower is given at once at most.
const FOLLOWED_EVENTS_MAX: usize = 256;
/// Bytes of them, unless a single one has more.
const FOLLOWED_BYTES_MAX: usize = 256 << 10;
/// Longest time for a follower's look at the log.
const LOOK_MAX: Duration = Duration::from_secs(5);

impl TenantHandle {
    /// Reads events behind number `after`, as many as `room` has room for.
    ///
    /// # Errors
    /// When the tenant's files cannot be read, or no answer came by the deadline.
    pub async fn events(
        &self,
        call: &Call,
        after: u64,
        room: PageBudget,
    ) -> Result<EventPage, CallError> {
        self.catch_up(call).await?;
        let page = self.read(call, move |reader| read_events(reader, after, room)).await?;
        Ok(page?)
    }
}

/// Reads a page in the tenant's actor, which ends where the log is damaged.
fn read_events(
    reader: &mut TenantReader<'_>,
    after: u64,
    room: PageBudget,
) -> Result<EventPage, StoreError> {
    let page = reader.state.events_after(reader.rows, after, room);
    // That there is no room to open the files is no damage.
    if let Err(error) = &page
        && !matches!(error, StoreError::Full)
    {
        reader.damage.get_or_insert_with(|| error.clone());
    }
    page
}

/// Follows a tenant's events.
pub struct EventFollower {
    tenants: Tenants,
    tenant: TenantId,
    call: Call,
    after: u64,
    /// Goes off when there may be more events than were read.
    news: Option<Pin<Box<OwnedNotified>>>,
}

impl Tenants {
    /// Follows the events of a tenant behind number `after`. Nothing is read yet.
    pub fn follow(&self, call: Call, tenant: TenantId, after: u64) -> EventFollower {
        EventFollower { tenants: self.clone(), tenant, call, after, news: None }
    }
}

impl EventFollower {
    /// Waits for the next events. Dropped before it is done it has given none.
    ///
    /// # Errors
    /// When the tenant is not served here any more, or its log cannot be read: the reader goes on elsewhere, or later.
    pub async fn next(&mut self) -> Result<EventPage, CallError> {
        loop {
            if let Some(news) = &mut self.news {
                news.as_mut().await;
                self.news = None;
            }
            let deadline = Instant::now() + LOOK_MAX;
            let call = Call { deadline, ..self.call.clone() };
            let tenant = self.tenants.handle(deadline, self.tenant).await?;
            let mut news = Box::pin(Arc::clone(&tenant.activation.news).notified_owned());
            news.as_mut().enable();
            let room = PageBudget::new(FOLLOWED_EVENTS_MAX).within(FOLLOWED_BYTES_MAX);
            let page = tenant.events(&call, self.after, room).await?;
            if !page.events.is_empty() {
                self.after = page.last;
                return Ok(page);
            }
            self.news = Some(news);
        }
    }

    /// Tells whether the tenant is known to be served elsewhere by now. A tenant that sleeps tells nobody.
    pub fn has_moved(&self) -> bool {
        let Some(placed) = self.tenants.0.directory.get(self.tenant) else { return true };
        self.tenants.0.router.lead(placed.group) != Lead::Here
    }
}
