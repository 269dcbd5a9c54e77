//! Stories told by a script: who does what to whom, one line after the other, in a world without
//! chance faults, and a transcript of what came of each line.
//!
//! A script and its transcript are two files that people read: `scripts/*.story` and the
//! `.transcript` beside it. A change of the program that changes a transcript is looked at as a
//! change of behaviour.
//!
//! ```text
//! # An isolated leader's locks stay taken.
//! nodes 3
//! elect
//! acquire k by ann at leader for 30
//! isolate leader
//! elect
//! acquire k by bob at leader
//! heal
//! settle
//! ```
//!
//! | line | what |
//! |---|---|
//! | `nodes N`, `seed N` | first of all: how many nodes, and what decides the rest |
//! | `elect` | waits until a majority follows one leader, and all who hear it do, but for full disks |
//! | `isolate X`, `part X Y \| Z`, `mute X`, `deafen X`, `heal` | links between nodes |
//! | `pause X`, `resume X` | nothing comes to it and nothing leaves it |
//! | `kill X`, `cut-power X`, `stop X`, `start X` | its process |
//! | `fill-disk X`, `free-disk X` | its disk |
//! | `copy disk of X as C`, `copy log of X as C`, `copy T of X as C` | C is what X has now: its disk, its log, the folder of a tenant |
//! | `put-back C`, `lose T of X` | power is cut, and C is put back, the folder of a tenant removed |
//! | `clock X SECS` | its wall clock is off by so much |
//! | `wait SECS` | simulated time passes |
//! | `acquire K by H at X [for SECS] [waiting SECS]` | a lock of the cluster |
//! | `renew K by H at X [for SECS]`, `release K by H at X` | under the token that H got last |
//! | `create T at X`, `describe T as WORD at X`, `look T at X`, `run T at X`, `runs T at X` | a tenant |
//! | `ask X` | who leads, as X says |
//! | `step-down X` | X is asked for another leader |
//! | `meanwhile LINE` | does not wait for the answer of the line; `answers` waits for all |
//! | `settle` | all nodes run, agree on a leader and vote |
//!
//! `X` is `n1` to `n5`, `leader`, or `follower` (the first that runs and does not lead).

mod asking;
mod driver;
mod parse;
mod waiting;

pub use driver::{Told, tell};
pub use parse::{Line, Script, ScriptError};
