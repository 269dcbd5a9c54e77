//! A cluster that grows, shrinks and is started again while it is used. Stories, each with a cluster of
//! its own:
//!
//! - `many`: a thousand tenants on five nodes are shared evenly, and a sixth gets its share and no more.
//! - `changes`: a node joins, one is removed, each is started again: no client sees an error.
//! - `stopped`, `full`: a node that is to have replicas falls silent, or has too small a disk: it gets no
//!   vote, counts for nothing, and others have its replicas.
//! - `kills`: one member is replaced by another while nodes are killed: in the end all is consistent.

mod changes;
mod kills;
mod load;
mod many;
mod shares;
mod stuck;
mod tally;

pub use changes::{Plan as Changes, trial as changes};
pub use kills::{Plan as Kills, trial as kills};
pub use many::{Plan as Many, trial as many};
pub use stuck::{How, trial as stuck};
pub use tally::Tally;

use crate::chaos::any_seed;

/// What to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which stories, in order.
    #[arg(long, value_delimiter = ',', default_value = "many,changes,stopped,full,kills")]
    only: Vec<Story>,
    /// How many tenants `many` has.
    #[arg(long, default_value_t = 1000)]
    tenants: usize,
    /// How often `changes` is told, and how often `kills` replaces a member.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Chooses moments, nodes and operations; by default another one every time.
    #[arg(long)]
    seed: Option<u64>,
}

/// A story.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Story {
    Many,
    Changes,
    Stopped,
    Full,
    Kills,
}

/// Tells the stories and prints what came of them; panics where a promise was broken.
pub async fn soak(args: &Args) {
    let first = args.seed.unwrap_or_else(any_seed);
    for story in &args.only {
        match story {
            Story::Many => println!("{}", many(Many { nodes: 5, tenants: args.tenants }).await),
            Story::Changes => {
                for round in 0..u64::from(args.rounds) {
                    let seed = first.wrapping_add(round);
                    let plan =
                        Changes { tenants: 12, clients: 1, removes: true, restarts: true, seed };
                    let tally = changes(&plan).await;
                    println!("{tally}");
                    assert!(tally.errors().is_empty(), "clients saw errors: {:#?}", tally.errors());
                }
            }
            Story::Stopped => println!("{}", stuck(How::Stopped).await),
            Story::Full => println!("{}", stuck(How::Full).await),
            Story::Kills => {
                let plan = Kills { rounds: args.rounds, tenants: 8, seed: first };
                println!("{}", kills(&plan).await);
            }
        }
    }
}
