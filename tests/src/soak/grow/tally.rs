//! What clients saw, by the moment at which they saw it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// Errors that are printed of each moment.
const SHOWN_MAX: usize = 5;

/// What became of one call that did not end as it should.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    /// No connection came to be: nothing was sent, and another node is asked.
    Refused,
    /// 503 with `Retry-After`: the client is told to come back. Its code.
    Later(String),
    /// The request was sent, and no whole answer came.
    Broken(String),
    /// An answer that nothing explains.
    Wrong(String),
}

/// What clients saw in one moment of a story.
#[derive(Clone, Debug, Default)]
struct Moment {
    name: String,
    answers: u64,
    slowest: Duration,
    refused: u64,
    later: BTreeMap<String, u64>,
    broken: Vec<String>,
    wrong: Vec<String>,
}

/// What clients saw in the moments of a story, in order.
#[derive(Clone, Debug)]
pub struct Tally {
    began: Instant,
    moments: Vec<Moment>,
}

impl Tally {
    pub(super) fn new(first: &str) -> Self {
        let mut tally = Self { began: Instant::now(), moments: Vec::new() };
        tally.begin(first);
        tally
    }

    /// Begins the next moment.
    pub(super) fn begin(&mut self, name: &str) {
        self.moments.push(Moment { name: name.to_owned(), ..Moment::default() });
    }

    /// Counts a call that ended as it should, after so long with all its attempts.
    pub(super) fn answered(&mut self, took: Duration) {
        let now = self.now();
        now.answers += 1;
        now.slowest = now.slowest.max(took);
    }

    /// Counts an attempt that did not.
    pub(super) fn troubled(&mut self, call: &str, trouble: Trouble) {
        let at = self.began.elapsed();
        let now = self.now();
        match trouble {
            Trouble::Refused => now.refused += 1,
            Trouble::Later(code) => *now.later.entry(code).or_default() += 1,
            Trouble::Broken(why) => now.broken.push(format!("{at:.1?} {call}: {why}")),
            Trouble::Wrong(what) => now.wrong.push(format!("{at:.1?} {call}: {what}")),
        }
    }

    /// Counts the calls that were answered as they should be.
    pub fn answers(&self) -> u64 {
        self.moments.iter().map(|moment| moment.answers).sum()
    }

    /// Gives the longest that a call took with all its attempts.
    pub fn slowest(&self) -> Duration {
        self.moments.iter().map(|moment| moment.slowest).max().unwrap_or_default()
    }

    /// Lists the answers that nothing explains.
    pub fn wrong(&self) -> Vec<&str> {
        self.moments.iter().flat_map(|moment| &moment.wrong).map(String::as_str).collect()
    }

    /// Lists the errors that a client sees which does what HTTP says, and no more: requests that were sent
    /// and got no whole answer, and answers that nothing explains.
    pub fn errors(&self) -> Vec<&str> {
        let all = self.moments.iter().flat_map(|moment| moment.broken.iter().chain(&moment.wrong));
        all.map(String::as_str).collect()
    }

    fn now(&mut self) -> &mut Moment {
        self.moments.last_mut().expect("it began with one")
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for moment in &self.moments {
            let Moment { name, answers, slowest, refused, later, broken, wrong } = moment;
            let (cut, odd) = (broken.len(), wrong.len());
            writeln!(
                f,
                "  {name}: {answers} answers, slowest {slowest:.0?}; errors: {cut} broken, {odd} wrong; \
                 {refused} not connected, told to come back: {later:?}"
            )?;
            for error in broken.iter().chain(wrong).take(SHOWN_MAX) {
                writeln!(f, "    {error}")?;
            }
        }
        Ok(())
    }
}
