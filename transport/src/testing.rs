//! What tests of this crate share: entropy from a seed, and a clock that stands.

use std::sync::Arc;
use std::sync::Mutex;

use ring::digest::{SHA256, digest};
use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::ports::seams::{Entropy, Seams};
use shiioo_actors::testing::At;

/// Entropy from a seed: the hashes of a counter.
#[derive(Debug)]
pub struct Seeded(Mutex<(u64, u64)>);

impl Seeded {
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new((seed, 0)))
    }
}

impl Entropy for Seeded {
    fn fill(&self, buffer: &mut [u8]) {
        let mut state = self.0.lock().unwrap();
        for chunk in buffer.chunks_mut(32) {
            state.1 += 1;
            let text = format!("{} {}", state.0, state.1);
            chunk.copy_from_slice(&digest(&SHA256, text.as_bytes()).as_ref()[..chunk.len()]);
        }
    }
}

/// Seams whose clock stands within the validity of every certificate.
pub fn seams(seed: u64) -> Seams {
    Seams {
        clock: Arc::new(At(Timestamp(1_700_000_000_000))),
        entropy: Arc::new(Seeded::new(seed)),
    }
}

/// The `number`-th tenant.
pub fn tenant(number: u32) -> TenantId {
    format!("00000000-0000-4000-8000-{number:012}").parse().unwrap()
}
