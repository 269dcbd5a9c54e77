//! What happened in a run, in order: hashed always, and kept as readable lines when asked for.
//!
//! Invariant: nothing but virtual time and what the program did goes in, so that two runs of a
//! seed have the same trace, and the first line that differs shows where chance leaked in.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Write as _};
use std::time::Duration;

use sha2::{Digest, Sha256};

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
    /// The time while no host runs: turmoil's own cannot be asked then without reading the real
    /// clock.
    static BETWEEN_STEPS: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// The trace of a run that has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// SHA-256 over all events, hexadecimal.
    pub hash: String,
    /// How many events there were.
    pub events: u64,
    /// The events as lines, where they were kept.
    pub lines: Vec<String>,
}

struct Recorder {
    hash: Sha256,
    events: u64,
    lines: Option<Vec<String>>,
}

/// Begins to record on this thread.
pub fn begin(keep_lines: bool) {
    let lines = keep_lines.then(Vec::new);
    RECORDER.set(Some(Recorder { hash: Sha256::new(), events: 0, lines }));
}

/// Ends the recording of this thread.
pub fn end() -> Trace {
    match RECORDER.take() {
        Some(Recorder { hash, events, lines }) => {
            let hash = hash.finalize().iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            });
            Trace { hash, events, lines: lines.unwrap_or_default() }
        }
        None => Trace::default(),
    }
}

/// Says what the time is until the next call: while the hosts do not run.
pub fn freeze(at: Option<Duration>) {
    BETWEEN_STEPS.set(at);
}

/// Virtual time since the start of the run.
pub fn now() -> Duration {
    BETWEEN_STEPS.get().or_else(turmoil::sim_elapsed).unwrap_or_default()
}

/// Whether the story is kept as lines.
pub fn keeps_lines() -> bool {
    RECORDER.with_borrow(|recorder| recorder.as_ref().is_some_and(|kept| kept.lines.is_some()))
}

/// What the lines take, bytes: at most what they have taken on the heap, with the list's own growth.
pub fn line_bytes() -> u64 {
    RECORDER.with_borrow(|recorder| {
        let lines = recorder.as_ref().and_then(|recorder| recorder.lines.as_ref());
        let Some(lines) = lines else { return 0 };
        // While it grows, a list is there twice.
        let list = 2 * lines.capacity() * size_of::<String>();
        (lines.iter().map(String::capacity).sum::<usize>() + list) as u64
    })
}

/// Adds a line to the story and nothing to the hash: what follows from events that are in it.
pub fn note(who: &str, kind: &str, what: fmt::Arguments<'_>) {
    RECORDER.with_borrow_mut(|recorder| {
        let lines = recorder.as_mut().and_then(|recorder| recorder.lines.as_mut());
        if let Some(lines) = lines {
            lines.push(line(who, kind, what));
        }
    });
}

fn line(who: &str, kind: &str, what: fmt::Arguments<'_>) -> String {
    format!("{:>12.6}  {who:<4} {kind:<6} {what}", now().as_secs_f64())
}

/// Records an event of `who`; `payload` are the bytes it carried, of which a line shows the
/// length and the beginning of a digest.
pub fn event(who: &str, kind: &str, what: fmt::Arguments<'_>, payload: &[u8]) {
    RECORDER.with_borrow_mut(|recorder| {
        let Some(recorder) = recorder else { return };
        let now = now();
        recorder.events += 1;
        recorder.hash.update(now.as_nanos().to_le_bytes());
        // A hasher takes all that is written to it.
        let _ = write!(Hashing(&mut recorder.hash), "{who} {kind} {what}");
        recorder.hash.update((payload.len() as u64).to_le_bytes());
        recorder.hash.update(payload);
        if let Some(lines) = &mut recorder.lines {
            let mut line = line(who, kind, what);
            if !payload.is_empty() {
                let digest = Sha256::digest(payload);
                let [a, b, c, ..] = digest[..] else { return };
                let _ = write!(line, "  [{} bytes {a:02x}{b:02x}{c:02x}]", payload.len());
            }
            lines.push(line);
        }
    });
}

struct Hashing<'a>(&'a mut Sha256);

impl fmt::Write for Hashing<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}
