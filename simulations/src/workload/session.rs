//! One client: chooses what to do, keeps what it knows, and compares.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::client::{Call, Client};
use super::locks::{Held, LockName};
use crate::checks::{Checked, durability};
use crate::facts::TenantModel;
use crate::plan::{API_PORT, client_name};
use crate::world::Board;

/// Pause between two operations, ms.
const PAUSE_MS_MAX: u64 = 120;
/// Tenants of its own that a client has at a time.
const TENANTS_MAX: usize = 2;
/// How long a client waits for the shared tenant before it looks again.
const SHARED_POLL: Duration = Duration::from_millis(20);
/// How much of what clients do is about the objects that all share.
const OBJECTS: f64 = 0.15;
/// How much of what clients do is to move a tenant, where there are several regions.
const MOVES: f64 = 0.12;
/// The client that makes the shared tenant.
const FOUNDER: u64 = 1;

/// One client.
pub struct Session {
    pub(super) name: String,
    pub(super) board: Rc<Board>,
    pub(super) client: Client,
    pub(super) rng: SmallRng,
    /// Tenants of its own, deleted ones included.
    pub(super) tenants: Vec<TenantModel>,
    /// The tenant that all share; only the own runs are known.
    pub(super) shared: TenantModel,
    pub(super) held: Vec<Held>,
    /// Locks that it gave back, each with the last token.
    pub(super) spent: BTreeMap<LockName, u64>,
    /// The last event of the shared tenant that it has read.
    pub(super) events_read: usize,
    marks: u64,
    /// The life of the node in which everything was last compared.
    compared_in: u64,
}

impl Session {
    /// Client `number` of the run of `seed`.
    pub fn new(number: u64, seed: u64, board: Rc<Board>) -> Self {
        let name = client_name(number);
        Self {
            client: Client::new(&name, board.node_names(), API_PORT, seed ^ number << 40),
            rng: SmallRng::seed_from_u64(seed ^ number << 48),
            tenants: Vec::new(),
            shared: TenantModel::default(),
            held: Vec::new(),
            spent: BTreeMap::new(),
            events_read: 0,
            marks: 0,
            compared_in: 0,
            name,
            board,
        }
    }

    /// Works until the faults stop.
    ///
    /// # Errors
    /// The violation that it saw.
    pub async fn work(&mut self) -> Checked {
        self.find_shared_tenant().await?;
        while self.board.works() {
            if self.compared_in != self.board.lives() {
                self.compare().await?;
            }
            let to_leave = self.board.to_leave.take();
            match to_leave {
                Some(id) => self.ask_to_leave(&id).await?,
                None => self.operate().await?,
            }
            let pause_ms = self.rng.random_range(0..=PAUSE_MS_MAX);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
        Ok(())
    }

    /// Waits for everything that was begun and compares it all once more.
    ///
    /// # Errors
    /// The violation that it saw.
    pub async fn settle(&mut self) -> Checked {
        for at in 0..self.tenants.len() {
            if self.tenants[at].suspended && !self.tenants[at].deleted {
                self.set_suspended(at, false).await?;
            }
            self.await_runs(at).await?;
        }
        self.await_shared_runs().await?;
        self.read_all_events().await?;
        self.compare().await
    }

    /// What nobody has used before in this run of the world.
    pub(super) fn mark(&mut self) -> String {
        self.marks += 1;
        format!("{}-{}", self.name, self.marks)
    }

    /// A tenant of its own that is not deleted.
    pub(super) fn some_tenant(&mut self) -> Option<usize> {
        let alive: Vec<usize> =
            (0..self.tenants.len()).filter(|at| !self.tenants[*at].deleted).collect();
        if alive.is_empty() {
            return None;
        }
        Some(alive[self.rng.random_range(0..alive.len())])
    }

    async fn operate(&mut self) -> Checked {
        let alive = self.tenants.iter().filter(|tenant| !tenant.deleted).count();
        let choice = self.rng.random_range(0..100);
        if self.rng.random_bool(OBJECTS) {
            return self.use_object().await;
        }
        if self.board.regions.len() > 1 && self.rng.random_bool(MOVES) {
            return self.move_tenant().await;
        }
        if alive < TENANTS_MAX && choice < 30 {
            return self.create_tenant().await;
        }
        match (choice, self.some_tenant()) {
            (0..29, _) => self.use_lock().await,
            (29..34, _) => self.use_register().await,
            (34, _) => self.ask_leader_to_step_down().await,
            (35..50, _) => self.start_shared_run().await,
            (50..75, Some(at)) => self.start_run(at).await,
            (75..83, Some(at)) => self.define_workflow(at).await,
            (83..90, Some(at)) => self.describe(at).await,
            (90..94, Some(at)) => {
                let suspended = self.tenants[at].suspended;
                self.set_suspended(at, !suspended).await
            }
            (94..96, Some(at)) => self.look_at_runs(at).await,
            (96..98, Some(_)) => self.read_events().await,
            (98.., Some(at)) => self.delete_tenant(at).await,
            (_, None) => self.create_tenant().await,
            (i32::MIN..0, Some(_)) => Ok(()),
        }
    }

    /// Compares everything of its own with the node.
    async fn compare(&mut self) -> Checked {
        let life = self.board.lives();
        // What its marks begin with. The dash keeps `c1` from being the beginning of `c10`.
        let own = format!("{}-", self.name);
        for at in 0..self.tenants.len() {
            let known = &self.tenants[at];
            let base = format!("/api/tenants/{}", known.id);
            durability::tenant(known, &self.client.settle(Call::get(&base)).await)?;
            if known.deleted {
                continue;
            }
            let reply = self.client.settle(Call::get(format!("{base}/workflows/main"))).await;
            durability::workflow(known, &reply)?;
            let reply = self.client.settle(Call::get(format!("{base}/runs?limit=10000"))).await;
            durability::listed(known, &own, &reply)?;
        }
        let path = format!("/api/tenants/{}/runs?limit=10000", self.shared.id);
        let reply = self.client.settle(Call::get(path)).await;
        durability::listed(&self.shared, &own, &reply)?;
        self.compared_in = life;
        Ok(())
    }

    async fn find_shared_tenant(&mut self) -> Checked {
        if self.name == client_name(FOUNDER) {
            return self.create_shared_tenant().await;
        }
        loop {
            if let Some(id) = self.board.shared_tenant.borrow().clone() {
                self.shared.id = id;
                return Ok(());
            }
            tokio::time::sleep(SHARED_POLL).await;
        }
    }
}
