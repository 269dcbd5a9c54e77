//! The files of the state machines: an index of rows and a log of events for every tenant, an index
//! for the control plane.
//!
//! The Raft log is where things become durable. What is here is its *consequence*: rows and events
//! that a state machine made of the entries it applied, kept so that a start need not apply the
//! whole history, and so that old runs can be read without being in memory.
//!
//! | file | is | written by |
//! |---|---|---|
//! | `index.redb`, `system.redb` | ordered rows, their position, the length of the events | [`row_index`] |
//! | `events.jsonl` | events, one a line; append-only | [`file_store`] |
//! | `idle` | empty; there while the tenant has no work | [`directory`] |
//! | `blobs/` | reserved | |
//!
//! # Written behind
//!
//! Applying an entry appends its events and keeps its rows in memory. Rows go to the index many at
//! once, every few seconds or MiB (decision 1), together with the position whose state they
//! complete and the length of the event log in that state. One durable commit is therefore one
//! consistent state. A crash loses what came after it, and the state machine applies those entries
//! again: the log still has them, because its low-water mark does not pass what is not durable
//! here.
//!
//! # Events before the index
//!
//! Two files cannot be changed atomically, so one of them has to decide, and it is the index. A
//! durable write is: sync `events.jsonl`, then commit the index, which says how long the events
//! are. When power goes in between, the events are longer than the index knows; they are cut to its
//! length, and applying again writes the same bytes. The other order would leave an index that
//! speaks of events that are not there, which nothing can repair. An event log that is *shorter*
//! than the index says is therefore damage, never a crash.
//!
//! # Damage is not absence
//!
//! A file that is missing must not be taken for a new, empty one: the tenant would start from
//! nothing and answer as if nothing had ever been. Three things tell the two apart.
//! - The log remembers who has files, and up to where they were durable. `Durability::belongs`
//!   compares.
//! - The index comes into being last, under its final name only when it is whole. Where it is
//!   missing beside events, it was lost.
//! - The index has the id of the log whose entries it is made of. Files of another node, or of an
//!   earlier life of this one, are refused.
//!
//! Every row has a checksum of its own, checked whenever it is read; redb's are looked at only when
//! it repairs. Any damage breaks the store: every later call fails alike until the files are opened
//! anew, so that no state machine goes on from half a truth.
//!
//! # The idle mark
//!
//! A new leader has to start the tenants that have work: runs, timers, locks. It would have to open
//! all of them to know, thousands of times two files. So a tenant that goes to sleep without work
//! leaves an empty file `idle`. The mark may be missing though the tenant is idle, which costs the
//! next leader a moment. It must never be there though the tenant has work, which would leave a run
//! lying. So it is made without a sync, and taken away durably before work begins.
//!
//! # Few descriptors, many tenants
//!
//! An open tenant holds two descriptors, and a process has some hundred. [`open_stores`] gives out
//! permits. When none is left, the tenant that has used its files least recently is asked to make
//! everything durable and close them; its state stays in memory. When the system itself has no
//! descriptor left, opening waits likewise: that is no damage of the tenant that happens to come
//! then.
//!
//! # What another replica sends
//!
//! It is read from a [`view`]: a transaction of redb that sees one state, whatever is committed later, while the store
//! goes on. It comes to files of its own beside those of the replica ([`staging`]), which take the place of these once
//! they are whole. An index that is put in place finds its events there, whatever is in between: they are added to those
//! that it goes on from first, and a folder is renamed whole.
//!
//! # Invariants
//!
//! - The files of one tenant are open once at a time. Opening and removing wait until the last user
//!   is done, also when that is a durable commit that nobody waits for any more.
//! - The index is never durable before the events it speaks of.
//! - A removal is seen whole or not at all: the folder is renamed first.
//!
//! # What is not done
//!
//! - Old events are not compacted, and `blobs/` is only counted.
//! - Nothing is repaired here by itself: damaged files are replaced by what another replica holds, or put
//!   back; on a lone node events are cut where somebody asks for it ([`FileStores::open_cut`]).
//! - redb's types do not leave this folder; the actors see the `Stores` port.

mod backend;
mod checksum;
mod directory;
mod file_store;
mod file_stores;
mod files;
mod keyed_mutex;
mod open_stores;
mod paths;
pub(crate) mod row_index;
mod staging;
mod view;

pub(crate) use directory::present;
pub use file_stores::{FileStores, StoresConfig};
pub(crate) use paths::{SYSTEM_INDEX, events_path, tenants_dir};
