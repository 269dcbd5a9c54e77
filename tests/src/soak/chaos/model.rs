//! What the clients know about the node: acknowledged, refused, and unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::Rng;
use rand::rngs::SmallRng;
use serde_json::{Value, json};

use crate::spec;

/// Runs a day that the small tenants may start.
pub const SMALL_LIMIT: u64 = 40;

/// All that all clients know.
pub struct Knowledge {
    /// One entry a client.
    pub clients: Vec<ClientKnowledge>,
    /// The key space that all clients share.
    pub cluster_tokens: Tokens,
}

/// What one client knows. Nobody else writes what it writes.
pub struct ClientKnowledge {
    /// Its number, by which its names differ from the others'.
    pub number: usize,
    /// Its tenants.
    pub tenants: Vec<TenantKnowledge>,
    /// Its locks in the cluster's key space.
    pub cluster_locks: BTreeMap<String, Register<Option<Grant>>>,
    /// The tokens of that key space.
    pub cluster_tokens: Tokens,
    /// A number for the next thing it makes.
    pub next: u64,
    /// What it did.
    pub totals: Totals,
}

/// What a client knows about one of its tenants.
pub struct TenantKnowledge {
    /// None until its creation is acknowledged, or settled.
    pub id: Option<String>,
    /// The key and body of its creation.
    pub creation: (String, Value),
    /// Whether it has been deleted.
    pub deleted: Register<bool>,
    /// How many runs a day it may start.
    pub limit: Option<u64>,
    /// When the day ends in which its runs were counted.
    pub resets_at: Option<Value>,
    /// Its description.
    pub description: Register<String>,
    /// Version and mark of its definition `main`.
    pub definition: Register<(u64, String)>,
    /// Its runs by id, with what they were started with.
    pub runs: BTreeMap<String, Start>,
    /// Starts without an answer.
    pub unknown: Vec<Start>,
    /// Its locks.
    pub locks: BTreeMap<String, Register<Option<Grant>>>,
    /// The tokens of its key space.
    pub tokens: Tokens,
}

/// A value written by one client: the last acknowledged, and those with an unknown outcome since.
#[derive(Clone, Debug)]
pub struct Register<T> {
    /// Acknowledged, or read.
    pub known: T,
    /// Sent after that, and never answered.
    pub maybe: Vec<T>,
}

/// Who holds a lock. The token is unknown where the answer was lost.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// The holder's name.
    pub holder: String,
    /// The fencing token.
    pub token: Option<u64>,
}

/// The largest fencing token seen in a key space.
#[derive(Clone, Default)]
pub struct Tokens(Arc<AtomicU64>);

/// What a run was started with.
#[derive(Clone, Debug)]
pub struct Start {
    /// Unique among all runs, given as input and demanded as output.
    pub mark: String,
    /// Whether `mark` was sent as `Idempotency-Key` as well.
    pub keyed: bool,
    /// The whole body.
    pub body: Value,
}

/// Counts of outcomes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Calls with a 2xx.
    pub acknowledged: u64,
    /// Refused by a quota.
    pub refused: u64,
    /// Without an answer, or with 503.
    pub unknown: u64,
    /// Runs known to exist.
    pub runs: u64,
}

impl Knowledge {
    /// Clients that have done nothing yet.
    pub fn new(clients: usize, rng: &mut SmallRng) -> Self {
        let cluster_tokens = Tokens::default();
        let salt: u32 = rng.random();
        let client = |number| ClientKnowledge {
            number,
            tenants: Vec::new(),
            cluster_locks: BTreeMap::new(),
            cluster_tokens: cluster_tokens.clone(),
            next: u64::from(salt) << 20,
            totals: Totals::default(),
        };
        Self { clients: (0..clients).map(client).collect(), cluster_tokens }
    }

    /// Counts of all clients together.
    pub fn totals(&self) -> Totals {
        let mut sum = Totals::default();
        for client in &self.clients {
            sum.acknowledged += client.totals.acknowledged;
            sum.refused += client.totals.refused;
            sum.unknown += client.totals.unknown;
            sum.runs += client.tenants.iter().map(|tenant| tenant.runs.len() as u64).sum::<u64>();
        }
        sum
    }
}

impl ClientKnowledge {
    /// A text that nobody used before.
    pub fn fresh(&mut self, what: &str) -> String {
        self.next += 1;
        format!("{what}-{}-{}", self.number, self.next)
    }
}

impl TenantKnowledge {
    /// A tenant that is about to be created.
    pub fn new(key: String, limit: Option<u64>) -> Self {
        let mut quota = spec::unlimited();
        quota["max_workflows_per_day"] = json!(limit);
        let body = json!({ "name": key, "description": "new", "quota": quota });
        Self {
            id: None,
            creation: (key, body),
            deleted: Register::new(false),
            limit,
            resets_at: None,
            description: Register::new("new".to_owned()),
            definition: Register::new((0, String::new())),
            runs: BTreeMap::new(),
            unknown: Vec::new(),
            locks: BTreeMap::new(),
            tokens: Tokens::default(),
        }
    }

    /// Its id where it certainly exists.
    pub fn alive(&self) -> Option<&str> {
        let gone = self.deleted.known || !self.deleted.maybe.is_empty();
        if gone { None } else { self.id.as_deref() }
    }

    /// The runs that exist for certain, by id and mark.
    pub fn started(&self) -> impl Iterator<Item = (&str, &str)> {
        self.runs.iter().map(|(id, start)| (id.as_str(), start.mark.as_str()))
    }

    /// Marks of all runs that exist or may exist.
    pub fn marks(&self) -> BTreeSet<&str> {
        self.runs.values().chain(&self.unknown).map(|start| start.mark.as_str()).collect()
    }
}

impl Start {
    /// The steps of its workflow.
    pub fn steps(&self) -> impl Iterator<Item = &Value> {
        self.body["workflow"]["steps"].as_array().into_iter().flatten()
    }

    /// The ids of its steps.
    pub fn step_ids(&self) -> Vec<String> {
        self.steps().map(|step| id_of(step).to_owned()).collect()
    }
}

/// The id of a step.
pub fn id_of(step: &Value) -> &str {
    step["id"].as_str().expect("an id")
}

impl<T: Clone> Register<T> {
    /// A register that is known.
    pub fn new(known: T) -> Self {
        Self { known, maybe: Vec::new() }
    }

    /// An acknowledged write, or a read that settles what was unknown.
    pub fn settle(&mut self, known: T) {
        *self = Self::new(known);
    }

    /// A write whose outcome is unknown.
    pub fn doubt(&mut self, sent: T) {
        self.maybe.push(sent);
    }

    /// What a read may show.
    pub fn possible(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.known).chain(&self.maybe)
    }
}

impl Tokens {
    /// The largest token seen so far.
    pub fn seen(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// A grant that was asked for when `before` was the largest.
    pub fn granted(&self, token: u64, before: u64) {
        assert!(token > before, "token {token} was granted after {before}");
        self.0.fetch_max(token, Ordering::SeqCst);
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, refused, unknown, runs } = self;
        write!(f, "{acknowledged} acknowledged, {refused} refused, {unknown} unknown, {runs} runs")
    }
}
