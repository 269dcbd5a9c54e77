//! What the clients do, and what each of them knows.
//!
//! A client has tenants of its own, which nobody else changes: what it was told about them must be
//! true at every moment between its calls. All clients share one tenant and a few locks, to race
//! for quotas and for terms; what must be true of those is checked over what all learned.
//!
//! Whenever a node has come back from an interruption, a client compares all that is its own
//! with what it knows before it goes on.

pub mod client;
mod cluster;
mod events;
mod locks;
mod objects;
mod runs;
mod session;
mod tenants;
mod watch;

use std::rc::Rc;

use crate::plan::{CLIENTS, Plan, WATCHER, client_name};
use crate::world::{Board, World};
use session::Session;
use watch::watch;

/// Builds the world of a run with all its clients.
pub(crate) fn populated(plan: &Plan) -> World {
    let mut names: Vec<String> = (1..=CLIENTS).map(client_name).collect();
    names.push(WATCHER.to_owned());
    let mut world = World::new(plan, &names);
    let board = Rc::clone(world.board());
    for number in 1..=CLIENTS {
        world.add_client(&client_name(number), client(number, plan.seed, Rc::clone(&board)));
    }
    world.add_client(WATCHER, watch(plan.seed, board));
    world.lay_links();
    world.set_paces();
    world
}

/// The life of client `number`, until the run has settled.
///
/// # Errors
/// The violation that it saw.
async fn client(number: u64, seed: u64, board: Rc<Board>) -> turmoil::Result {
    board.busy.set(board.busy.get() + 1);
    let mut session = Session::new(number, seed, Rc::clone(&board));
    session.work().await?;
    session.settle().await?;
    board.busy.set(board.busy.get() - 1);
    Ok(())
}
