//! Killing a node at random moments, and holding it to what it had acknowledged.
//!
//! A run of chaos has rounds. In each, several clients write to the node; at a random moment it is
//! killed with SIGKILL, sometimes once more while it comes back; then it is started on the same
//! data and compared with what the clients know:
//!
//! - *Acknowledged is there*: tenants and their last written description, the last version of a
//!   definition, every run, who holds which lock with which token.
//! - *Unknown is all or nothing*: a call that got no answer either took effect once or not at all.
//!   Sending it again with its `Idempotency-Key` gives the one that took effect.
//! - *Quotas are exact*: `used` of the day is the number of runs that there are.
//! - *Tokens grow*: a grant's fencing token is larger than any seen before in its key space.
//! - *What was begun ends*: every run completes, with the output that its input demands, and each
//!   of its steps is recorded once.
//! - *The log is whole*: `events.jsonl` is lines of JSON numbered 1, 2, 3, ...
//!
//! The clients keep their knowledge in [`model`], [`writers`] change it, [`checks`] compare it.

pub mod checks;
pub mod model;
pub mod writers;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::{Counter, Server, away_from_midnight};
use model::{Knowledge, Totals};

/// How long a service thinks before it answers a step, so that kills find calls under way.
const SERVICE_THINKS: Duration = Duration::from_millis(15);
const LOAD_MS_MIN: u64 = 50;
const LOAD_MS_MAX: u64 = 900;
/// A second kill comes this soon after the start, before, at or after readiness.
const SECOND_KILL_MS_MAX: u64 = 400;
/// One of so many kills is followed by a second one during recovery.
const SECOND_KILL_ONE_IN: u32 = 4;
/// One of so many rounds waits for all runs to end; the others pile unfinished ones up.
const SETTLE_ONE_IN: u32 = 3;

/// A round takes less, its checks included.
const ROUND_MAX: Duration = Duration::from_secs(6);

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Chooses the moments and the operations.
    pub seed: u64,
    /// How many rounds end in a kill.
    pub kills: u32,
    /// How many clients write.
    pub clients: usize,
    /// The command that repeats this plan, shown when it fails.
    pub again: String,
    /// Whether to tell of every round.
    pub verbose: bool,
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Kills, those during recovery included.
    pub kills: u32,
    /// What the clients did.
    pub totals: Totals,
    /// The longest time from the start of a process to readiness after a kill.
    pub slowest_recovery: Duration,
}

/// Another seed every time.
pub fn any_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    u64::from(now.subsec_nanos()) ^ now.as_secs()
}

/// Repeats a test with a given seed.
pub const SEED_VARIABLE: &str = "SHIIOO_TEST_SEED";

/// The seed that [`SEED_VARIABLE`] names, or the one that a test has without it.
pub fn seed_or(usual: u64) -> u64 {
    let given = std::env::var(SEED_VARIABLE).ok();
    given.map_or(usual, |seed| seed.parse().expect("a seed in SHIIOO_TEST_SEED"))
}

/// Carries the plan out; panics where the node broke a promise.
pub async fn run(plan: &Plan) -> Summary {
    // The day's quota is checked to the last run, and starts anew at midnight.
    away_from_midnight(ROUND_MAX * plan.kills).await;
    let folder = Evidence { folder: TempDir::new().expect("a temporary folder"), plan };
    let mut rng = SmallRng::seed_from_u64(plan.seed);
    let service = Counter::thinking(SERVICE_THINKS).await;
    let mut server = Server::start(&folder.folder, &[]).await;
    let mut knowledge = Knowledge::new(plan.clients, &mut rng);
    let mut summary = Summary::default();
    for round in 1..=plan.kills {
        load_until_killed(&mut server, &mut knowledge, &service, &mut rng).await;
        summary.kills += 1;
        if rng.random_ratio(1, SECOND_KILL_ONE_IN) {
            server.relaunch();
            let after = Duration::from_millis(rng.random_range(0..SECOND_KILL_MS_MAX));
            tokio::time::sleep(after).await;
            server.kill9();
            summary.kills += 1;
        }
        let started = Instant::now();
        server.restart().await;
        let recovery = started.elapsed();
        summary.slowest_recovery = summary.slowest_recovery.max(recovery);
        checks::after_restart(&server, &mut knowledge).await;
        if rng.random_ratio(1, SETTLE_ONE_IN) {
            checks::everything_ends(&server, &knowledge, &service).await;
        }
        if plan.verbose {
            println!("kill {round:>3}: back in {recovery:>8.1?}, {}", knowledge.totals());
        }
    }
    checks::everything_ends(&server, &knowledge, &service).await;
    server.term().await;
    checks::logs_are_whole(&server.data(), &knowledge);
    summary.totals = knowledge.totals();
    summary
}

/// Lets all clients write, and kills the node while they do.
async fn load_until_killed(
    server: &mut Server,
    knowledge: &mut Knowledge,
    service: &Counter,
    rng: &mut SmallRng,
) {
    let mut writing = JoinSet::new();
    for client in knowledge.clients.drain(..) {
        let seed = rng.random();
        let url = service.url("/step");
        writing.spawn(writers::write(server.client(), client, url, seed));
    }
    let after = Duration::from_millis(rng.random_range(LOAD_MS_MIN..LOAD_MS_MAX));
    tokio::time::sleep(after).await;
    server.kill9();
    // A client stops at its first broken call.
    knowledge.clients = writing.join_all().await;
    knowledge.clients.sort_by_key(|client| client.number);
}

/// The data of a run, kept when the run fails, with the way to run it again.
struct Evidence<'a> {
    folder: TempDir,
    plan: &'a Plan,
}

impl Drop for Evidence<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.folder.disable_cleanup(true);
            eprintln!("seed {} failed; its data is kept in {:?}", self.plan.seed, self.folder);
            eprintln!("run it again: {}", self.plan.again);
        }
    }
}
