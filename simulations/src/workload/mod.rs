//! What the clients do, and what each of them knows.
//!
//! A client has tenants of its own, which nobody else changes: what it was told about them must be
//! true at every moment between its calls. All clients share one tenant and a few locks, to race
//! for quotas and for terms; what must be true of those is checked over what all learned.
//!
//! Whenever a node has come back from an interruption, a client compares all that is its own
//! with what it knows before it goes on.

mod cluster;
mod locks;
mod objects;
mod runs;
mod session;
mod tenants;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use serde_json::Value;

use crate::board::{Board, Limits};
pub use objects::SharedObject;
use session::Session;
pub(crate) use session::client_name;
pub(crate) use watch::{WATCHER, watch};

/// A tenant, as its one owner knows it.
#[derive(Debug, Clone, Default)]
pub struct TenantModel {
    /// The id.
    pub id: String,
    /// The name.
    pub name: String,
    /// The description of the last update.
    pub description: String,
    /// Whether it is suspended.
    pub suspended: bool,
    /// Whether it was deleted.
    pub deleted: bool,
    /// Version and mark of the definition.
    pub workflow: Option<(u64, String)>,
    /// The quotas it was made with.
    pub limits: Limits,
    /// The runs that this client was told of, by id.
    pub runs: BTreeMap<String, RunModel>,
    /// The marks of starts that were refused in the end, and of which an earlier call may still be
    /// under way: a refusal uses up no idempotency key.
    pub unsure: BTreeSet<String>,
}

/// A run, as the client that started it knows it.
#[derive(Debug, Clone)]
pub struct RunModel {
    /// What makes the start unique: in the input, and in the output of the last step.
    pub mark: String,
    /// The ids of its steps.
    pub steps: Vec<String>,
    /// The run, once it was seen to have ended.
    pub ended: Option<Value>,
}

/// The life of client `number`, until the run has settled.
///
/// # Errors
/// The violation that it saw.
pub async fn client(number: u64, seed: u64, board: Rc<Board>) -> turmoil::Result {
    board.busy.set(board.busy.get() + 1);
    let mut session = Session::new(number, seed, Rc::clone(&board));
    session.work().await?;
    session.settle().await?;
    board.busy.set(board.busy.get() - 1);
    Ok(())
}
