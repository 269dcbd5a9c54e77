//! `cargo run --release -p tests --bin load`: what a node does under load, and what it costs.

use clap::Parser;
use tests::load::{self, Args};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    load::run(Args::parse()).await;
}
