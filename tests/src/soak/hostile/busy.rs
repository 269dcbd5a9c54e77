//! What attackers take of the machine by being there, without a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::attack::{THREADS, take_what_is_left};

/// As many threads as attackers have, scheduled as they are, that keep the processors busy until dropped.
pub(super) struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    pub(super) fn begin() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..THREADS).map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                take_what_is_left();
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        });
        Self { threads: threads.collect(), stop }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that only counts does not panic.
            let _ = thread.join();
        }
    }
}
