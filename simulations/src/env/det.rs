//! Chance under control: what the program asks of the operating system comes from a seed.
//!
//! The crates below the node draw random bytes where no seam reaches: `RandomState` orders hash
//! maps, ring makes TLS keys, generators seed themselves. All of them end at two symbols of libc,
//! `getrandom` and `syscall`, which this module defines anew for every binary that links it.
//!
//! Invariants:
//! - A thread that was not seeded gets the system's own bytes: the override is inert there.
//! - Every run has a thread of its own, because the standard library draws the keys of its hash
//!   maps once per thread.
//! - A run whose simulated time stands still ends: tasks of the program that wake each other without an
//!   end would keep it at one moment for ever. Nothing else of a run depends on how fast the machine is.

use std::cell::{Cell, RefCell};
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Once};
use std::time::Duration;

/// The stack of a run's thread, bytes: futures are large when they are built for debugging.
const STACK_BYTES: usize = 64 << 20;

/// A run whose simulated time does not go on for so long stands still. A step takes milliseconds, also on a
/// busy machine with a build for debugging; the checks after the last one may take longer.
const STANDSTILL: Duration = Duration::from_secs(120);

thread_local! {
    /// The generator of this thread. A plain number, so that it needs no destructor and can be
    /// asked at any time of a thread's life.
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
    /// Panics on this thread since the last look: actors catch theirs, and they are faults of the
    /// program all the same.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// Steps of this thread's run.
    static STEPS: RefCell<Arc<AtomicU64>> = RefCell::default();
}

/// Counts a step of simulated time.
pub fn count_step() {
    STEPS.with_borrow(|steps| steps.fetch_add(1, Ordering::Relaxed));
}

/// Runs `body` on a fresh thread whose chance comes from `seed`. A panic in there is returned as
/// its message.
///
/// # Errors
/// The message of a panic, or that the run stands still: its thread stays behind then.
pub fn on_seeded_thread<T: Send + 'static>(
    seed: u64,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    on_watched_thread(seed, STANDSTILL, body)
}

fn on_watched_thread<T: Send + 'static>(
    seed: u64,
    standstill: Duration,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(note_panics);
    let (steps, (ended, has_ended)) = (Arc::new(AtomicU64::new(0)), mpsc::channel::<()>());
    let counted = Arc::clone(&steps);
    let thread = std::thread::Builder::new().name(format!("seed {seed}")).stack_size(STACK_BYTES);
    let running = thread.spawn(move || {
        STATE.set(Some(seed));
        assert!(is_in_force(seed), "the override of `getrandom` is not linked in");
        STEPS.set(counted);
        // Dropped when the run has ended, also by a panic.
        let _ended = ended;
        body()
    });
    let running = running.map_err(|error| format!("cannot start a thread: {error}"))?;
    let mut last = None;
    while has_ended.recv_timeout(standstill) == Err(RecvTimeoutError::Timeout) {
        let now = steps.load(Ordering::Relaxed);
        if last.replace(now) == Some(now) {
            return Err(format!(
                "step {now}, or a check after it, does not end: do tasks wake each other for ever?"
            ));
        }
    }
    running.join().map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic without a message".to_owned())
    })
}

/// The panics on this thread since the last call, caught ones included.
pub fn take_panics() -> Vec<String> {
    PANICS.take()
}

/// Has the panics of seeded threads written down instead of printed.
fn note_panics() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if STATE.get().is_none() {
            return print(info);
        }
        let what = info.payload_as_str().unwrap_or("a panic without a message");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        PANICS.with_borrow_mut(|panics| panics.push(format!("{what} at {place}")));
    }));
}

/// Whether libc's symbol is ours in this binary: it must give the bytes that the seed says.
fn is_in_force(seed: u64) -> bool {
    let mut given = [0_u8; 8];
    // SAFETY: the buffer is valid for its length.
    let filled = unsafe { libc::getrandom(given.as_mut_ptr().cast(), given.len(), 0) };
    let mut expected = [0_u8; 8];
    fill(&mut seed.clone(), &mut expected);
    filled == 8 && given == expected
}

/// Fills a buffer from a SplitMix64 generator.
fn fill(state: &mut u64, buffer: &mut [u8]) {
    for chunk in buffer.chunks_mut(8) {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = *state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}

/// Fills the buffer where this thread is seeded.
///
/// # Safety
/// `buffer` is valid for writes of `len` bytes.
unsafe fn fill_if_seeded(buffer: *mut u8, len: usize) -> bool {
    let Ok(Some(mut state)) = STATE.try_with(Cell::get) else { return false };
    if len > 0 {
        // SAFETY: the caller says so.
        fill(&mut state, unsafe { std::slice::from_raw_parts_mut(buffer, len) });
    }
    STATE.with(|kept| kept.set(Some(state)));
    true
}

/// Takes the place of libc's `getrandom`.
///
/// # Safety
/// As libc's: `buffer` is valid for writes of `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    len: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    // SAFETY: the caller says so.
    if unsafe { fill_if_seeded(buffer.cast(), len) } {
        return len as libc::ssize_t;
    }
    let args = [buffer as i64, len as i64, i64::from(flags), 0, 0, 0];
    // SAFETY: the arguments are the caller's, as the kernel wants them.
    unsafe { kernel(libc::SYS_getrandom, args) as libc::ssize_t }
}

/// Takes the place of libc's `syscall`: ring asks for random bytes through it.
///
/// # Safety
/// As libc's: the arguments are what the numbered call demands.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: libc::c_long,
    a: libc::c_long,
    b: libc::c_long,
    c: libc::c_long,
    d: libc::c_long,
    e: libc::c_long,
    f: libc::c_long,
) -> libc::c_long {
    if number == libc::SYS_getrandom {
        // SAFETY: the caller says so.
        if unsafe { fill_if_seeded(a as *mut u8, b as usize) } {
            return b;
        }
    }
    // SAFETY: the arguments are the caller's.
    unsafe { kernel(number, [a, b, c, d, e, f]) }
}

/// Calls the kernel as libc's `syscall` does: -1 and `errno` for an error.
///
/// # Safety
/// The arguments are what the numbered call demands.
unsafe fn kernel(number: i64, args: [i64; 6]) -> i64 {
    /// Results from here to -1 are error numbers.
    const ERRNO_MIN: i64 = -4095;
    // SAFETY: the caller says so.
    let result = unsafe { trap(number, args) };
    if (ERRNO_MIN..0).contains(&result) {
        let errno = i32::try_from(-result).unwrap_or(libc::EINVAL);
        // SAFETY: libc gives a valid pointer to this thread's `errno`.
        unsafe { *libc::__errno_location() = errno };
        return -1;
    }
    result
}

#[cfg(target_arch = "x86_64")]
unsafe fn trap(number: i64, [a, b, c, d, e, f]: [i64; 6]) -> i64 {
    let result: i64;
    // SAFETY: the kernel's calling convention; it changes rax, rcx, r11 and memory that the
    // arguments name.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

#[cfg(target_arch = "aarch64")]
unsafe fn trap(number: i64, [a, b, c, d, e, f]: [i64; 6]) -> i64 {
    let result: i64;
    // SAFETY: the kernel's calling convention; it changes x0 and memory that the arguments name.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack),
        );
    }
    result
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn order() -> Vec<u32> {
        (0..50).collect::<HashSet<u32>>().into_iter().collect()
    }

    #[test]
    fn a_seed_decides_the_order_of_hash_maps() {
        let one = on_seeded_thread(1, order).unwrap();
        assert_eq!(one, on_seeded_thread(1, order).unwrap());
        assert_ne!(one, on_seeded_thread(2, order).unwrap());
    }

    #[test]
    fn other_threads_get_the_systems_bytes() {
        let mut bytes = [[0_u8; 16]; 2];
        for buffer in &mut bytes {
            // SAFETY: the buffer is valid for its length.
            let filled = unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), 16, 0) };
            assert_eq!(filled, 16);
        }
        assert_ne!(bytes[0], bytes[1]);
    }

    #[test]
    fn a_panic_is_a_message() {
        assert_eq!(on_seeded_thread(1, || panic!("seen")), Err::<(), _>("seen".to_owned()));
    }

    #[test]
    fn a_run_that_stands_still_ends() {
        let standstill = Duration::from_millis(20);
        let ended = on_watched_thread(1, standstill, || {
            count_step();
            loop {
                std::thread::park();
            }
        });
        let Err(why): Result<(), String> = ended else { panic!("it ended") };
        assert!(why.contains("does not end"), "{why}");
    }

    #[test]
    fn a_run_that_goes_on_for_long_is_left_alone() {
        let standstill = Duration::from_millis(500);
        let ended = on_watched_thread(1, standstill, move || {
            for _ in 0..20 {
                std::thread::park_timeout(standstill / 10);
                count_step();
            }
        });
        assert_eq!(ended, Ok(()));
    }
}
