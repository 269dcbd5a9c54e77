//! Mutants: the program with one safety taken away, to show that the simulator's checks would
//! notice.
//!
//! Each hook in the program is a line or a few that ask [`is`]. Without the cargo feature `mutants`
//! the answer is a constant, which the compiler removes. Only the simulator's own runs turn the
//! feature on (`cargo run -p simulations --features mutants`), no test does, and the program `shiioo`
//! does not build with it.
//!
//! After R. DeMillo, R. Lipton, F. Sayward, "Hints on Test Data Selection" (1978).

#[cfg(feature = "mutants")]
use std::cell::Cell;
use std::fmt;
use std::str::FromStr;

/// Whether this build has mutants.
pub const BUILT_IN: bool = cfg!(feature = "mutants");

/// A safety that is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// The log acknowledges a batch that it has not synced.
    NoLogSync,
    /// A tenant's index becomes durable without a sync of `events.jsonl` before it.
    NoEventsSync,
    /// A lock is renewed and released under any token that its holder ever had.
    NoFencing,
    /// An expiry ends a term that was renewed after its timer fired.
    ExpireRenewed,
    /// A new leader takes the terms of all locks for over.
    ForgetTerms,
    /// A new leader lets the terms of locks run on by the wall clock.
    TermsByWallClock,
    /// A leader that restarts goes on in the same term, without an election.
    RestoreLeader,
    /// A call is done again under an idempotency key that was used before.
    NoIdempotencyKeys,
    /// A request is done again that a node sent again because it had heard nothing.
    NoRequestNames,
    /// The quotas on runs are looked at when a run is asked for, and not when it is let in.
    QuotaBeforeApply,
    /// A read is answered from what this node has, however old.
    NoReadIndex,
    /// The leader answers a read without asking a quorum whether it still leads.
    NoReadRound,
    /// A vote is not written down.
    NoVoteOnDisk,
    /// A node whose log is gone begins a new one, and nobody remembers what was in it.
    TrustMissingLog,
    /// A tenant whose files are missing begins anew.
    TrustMissingFiles,
    /// A tenant goes on from files that are older than the log knows.
    TrustOlderFiles,
    /// Idempotency keys grow old by the wall clock of whoever wrote the entry.
    ForgetKeysByClock,
    /// What failed after a command was accepted says that nothing changed.
    DenyAfterAccept,
    /// A duration of a step is a moment of the wall clock.
    WaitsByWallClock,
    /// The runs of a day are counted for the latest day that a clock ever said.
    DayRatchet,
    /// A job is created again under an idempotency key that was used before.
    JobsWithoutKeys,
    /// What a replica is sent lacks the events that it does not have.
    SnapshotWithoutEvents,
    /// A replica tells the log that what it has applied is in its files.
    MarkTooEarly,
    /// The source of a move goes on with a tenant that is about to be handed over, or was.
    TwoOwners,
    /// A deleted tenant is forgotten once its group has confirmed that it has nothing of it.
    ForgetTombstones,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::NoLogSync,
        Self::NoEventsSync,
        Self::NoFencing,
        Self::ExpireRenewed,
        Self::ForgetTerms,
        Self::TermsByWallClock,
        Self::RestoreLeader,
        Self::NoIdempotencyKeys,
        Self::NoRequestNames,
        Self::QuotaBeforeApply,
        Self::NoReadIndex,
        Self::NoReadRound,
        Self::NoVoteOnDisk,
        Self::TrustMissingLog,
        Self::TrustMissingFiles,
        Self::TrustOlderFiles,
        Self::ForgetKeysByClock,
        Self::DenyAfterAccept,
        Self::WaitsByWallClock,
        Self::DayRatchet,
        Self::JobsWithoutKeys,
        Self::SnapshotWithoutEvents,
        Self::MarkTooEarly,
        Self::TwoOwners,
        Self::ForgetTombstones,
    ];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoLogSync => "no-log-sync",
            Self::NoEventsSync => "no-events-sync",
            Self::NoFencing => "no-fencing",
            Self::ExpireRenewed => "expire-renewed",
            Self::ForgetTerms => "forget-terms",
            Self::TermsByWallClock => "terms-by-wall-clock",
            Self::RestoreLeader => "restore-leader",
            Self::NoIdempotencyKeys => "no-idempotency-keys",
            Self::NoRequestNames => "no-request-names",
            Self::QuotaBeforeApply => "quota-before-apply",
            Self::NoReadIndex => "no-read-index",
            Self::NoReadRound => "no-read-round",
            Self::NoVoteOnDisk => "no-vote-on-disk",
            Self::TrustMissingLog => "trust-missing-log",
            Self::TrustMissingFiles => "trust-missing-files",
            Self::TrustOlderFiles => "trust-older-files",
            Self::ForgetKeysByClock => "forget-keys-by-clock",
            Self::DenyAfterAccept => "deny-after-accept",
            Self::WaitsByWallClock => "waits-by-wall-clock",
            Self::DayRatchet => "day-ratchet",
            Self::JobsWithoutKeys => "jobs-without-keys",
            Self::SnapshotWithoutEvents => "snapshot-without-events",
            Self::MarkTooEarly => "mark-too-early",
            Self::TwoOwners => "two-owners",
            Self::ForgetTombstones => "forget-tombstones",
        }
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no mutant's.
#[derive(Debug, thiserror::Error)]
#[error("no such mutant; there are {}", Mutant::ALL.map(Mutant::name).join(", "))]
pub struct UnknownMutant;

impl FromStr for Mutant {
    type Err = UnknownMutant;

    fn from_str(name: &str) -> Result<Self, UnknownMutant> {
        Self::ALL.into_iter().find(|mutant| mutant.name() == name).ok_or(UnknownMutant)
    }
}

#[cfg(feature = "mutants")]
thread_local! {
    /// A run of the simulator has a thread of its own, with all of the program on it.
    static PRESENT: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Makes the program on this thread that mutant, or whole again.
#[cfg(feature = "mutants")]
pub fn set(mutant: Option<Mutant>) {
    PRESENT.set(mutant);
}

/// Whether the program on this thread is that mutant.
#[cfg(feature = "mutants")]
pub fn is(mutant: Mutant) -> bool {
    PRESENT.get() == Some(mutant)
}

/// Whether the program on this thread is that mutant: it is none.
#[cfg(not(feature = "mutants"))]
#[inline]
pub const fn is(_: Mutant) -> bool {
    false
}
