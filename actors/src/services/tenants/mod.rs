//! Tenants at run time: one actor each, under one supervisor.
//!
//! A node may host a hundred thousand tenants of which a few hundred have something to do. A tenant is
//! therefore *activated* when somebody needs it, and goes to sleep when nobody does. Awake it is an
//! actor that owns the tenant's replica (`replica/`), its counters, and the steps that it performs
//! (`services/executor/`). Asleep it is a small [`Activation`] with an empty queue.
//!
//! ```text
//! Registry ── delivers entries to ──> Activation (one a tenant: queue, state, permits)
//!                                       │ wake            ▲ state
//!                                       ▼                 │
//!                                TenantSupervisor ──> TenantActor (replica, steps, waiters)
//! ```
//!
//! # States
//!
//! | state | actor | left by |
//! |---|---|---|
//! | `Asleep` | none | an entry, a call, or a new term with unfinished work: `Starting` |
//! | `Starting` | opens files, replays | success: `Running`; failure: again up to 3 times, then `Quarantined`; damaged files: `Damaged`; the node has left the group, or stops: `Asleep` |
//! | `Running` | runs | nothing to do: `Closing`; failure: `Starting`, `Quarantined`, `Damaged` |
//! | `Closing` | closes files | a call or an entry came: `Running`; else `Asleep` |
//! | `Quarantined` | none | 15 s later: `Starting` |
//! | `Damaged` | none | a copy from another replica: `Starting`; the tenant's deletion; a restart |
//!
//! # Activation
//!
//! Three things wake a tenant: an entry that its group delivers, a call (`Activation::actor`), and a new
//! term. A leader that takes over has to go on with runs whose entries were applied long ago, so it
//! starts the tenants whose files are not marked as idle, eight at a time ([`unfinished_work`]).
//!
//! # Sleep
//!
//! Every 5 s an actor makes durable what has changed, and sleeps if all of this is true:
//!
//! - no run is live, and no lock is held: both have timers or steps that nobody else would look after;
//! - no task of a step is under way;
//! - no request was admitted in the last minute: the count of requests is in memory alone;
//! - everything applied is durable: a sleeping tenant would keep the log from being cut, and on a full
//!   disk nothing would wake it when there is room;
//! - no call holds a permit, and no entry waits in the queue.
//!
//! **The race.** An entry or a call may come at the very moment at which the actor decides. Both sides
//! follow one rule: *first leave a trace, then look at the state*. A caller takes its permit and then
//! looks whether the actor runs. The apply loop puts the entry into the queue and then wakes. The actor
//! says `Closing` and then looks at permits and queue. Whoever comes second sees the other; see
//! [`sleep`] for each interleaving.
//!
//! # Failure
//!
//! An actor that fails, by an error or a panic, is started again from its files and the log, up to three
//! times in 60 s; the fourth failure puts the tenant into quarantine. Its callers are then refused at once
//! with the reason, and so are proposals, which nobody would apply; entries that come all the same wait in
//! the log. After 15 s the tenant is tried again, and failures are counted from zero. Three kinds of failure
//! do not count:
//!
//! - damage: another attempt finds the same files, so the tenant is out of service at once;
//! - no file descriptor left: it passes, so the start is tried again every 250 ms;
//! - a full disk: the start waits, and a running actor goes on from memory.
//!
//! # Damage
//!
//! The leader of the tenant's group holds what the damaged files held, so the supervisor asks the leader
//! for it: after 250 ms, then after 5 s, then after twice as long each time, up to a minute. What the leader
//! sends takes the place of the files, and the tenant starts from it.
//! Until then this node should not lead the group, where nobody would serve the tenant: it says so in its
//! heartbeats, and hands the lead over. Without another replica a person has to put the files back.
//! Damage that nobody would meet for long is looked for ([`scrub`]), and what checksums cannot show is found
//! by comparing replicas ([`compare`]).
//!
//! A damaged tenant can still be deleted. The deletion needs nothing of what was in the files, so the
//! supervisor removes them and starts the tenant with none.
//!
//! # Invariants
//!
//! - The files of a tenant are open in one actor at a time.
//! - What waits for one tenant is bounded by permits. When they are out its callers get 'busy', and
//!   other tenants notice nothing.
//! - A tenant that fails, stalls or is damaged stops neither its group nor another tenant.
//! - Steps and leases are performed only by the leader of the tenant's group, after everything of earlier
//!   terms has been applied.

mod activation;
mod actor;
mod compare;
mod message;
mod parts;
mod rate;
mod registry;
mod scrub;
mod sleep;
mod supervisor;
mod unfinished_work;

pub use activation::{Activation, ActivationState, TENANT_CALLS_MAX};
pub use actor::TenantDeps;
pub use message::{AdmitReply, SupervisorMessage, TenantMessage, TenantReader, TestHook};
pub use registry::{Quarantined, Registry};
pub use supervisor::{SupervisorArguments, TenantSupervisor};
