//! The clock seam as rustls asks for it.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use shiioo_actors::ports::seams::Clock;

/// Lets rustls check the validity of certificates by the clock seam.
pub(crate) fn wall_time(clock: &Arc<dyn Clock>) -> Arc<dyn TimeProvider> {
    Arc::new(WallTime(Arc::clone(clock)))
}

#[derive(Debug)]
struct WallTime(Arc<dyn Clock>);

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        // A clock before 1970 is no time at all: certificates are then refused.
        let ms = u64::try_from(self.0.now().0).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_millis(ms)))
    }
}
