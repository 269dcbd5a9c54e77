//! The event log of the tenant that all clients share: each reads it in pages, at whatever node.

use outside::ensure;

use super::client::Call;
use super::session::Session;
use crate::checks::{Checked, event_pages};

/// Events of a page.
const PAGE: usize = 40;

impl Session {
    /// Reads all events once more, from the first to the last.
    pub(super) async fn read_all_events(&mut self) -> Checked {
        self.events_read = 0;
        loop {
            self.read_events().await?;
            if self.events_read == 0 {
                return Ok(());
            }
        }
    }

    /// Reads on where it has stopped, or begins anew where it had read everything.
    pub(super) async fn read_events(&mut self) -> Checked {
        let told = self.board.events.borrow().len();
        let after = self.events_read;
        let path = format!("/api/tenants/{}/events?after={after}&limit={PAGE}", self.shared.id);
        let reply = self.client.settle(Call::get(path)).await;
        ensure!(reply.status == 200, "events cannot be read: {reply}");
        let shown = &mut *self.board.events.borrow_mut();
        let last = event_pages::page((after, PAGE, told), shown, &reply)?;
        self.events_read = if last == after { 0 } else { last };
        Ok(())
    }
}
