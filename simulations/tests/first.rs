//! first
use simulations::{client::*, det, trace, world::*};
use std::time::Duration;
fn run(seed: u64) -> trace::Trace {
    det::on_seeded_thread(seed, move || {
        trace::begin(true);
        trace::freeze(Some(Duration::ZERO));
        let mut b = turmoil::Builder::new();
        b.rng_seed(seed)
            .epoch(std::time::UNIX_EPOCH)
            .simulation_duration(Duration::from_secs(100))
            .tick_duration(Duration::from_millis(2))
            .min_message_latency(Duration::from_millis(2))
            .max_message_latency(Duration::from_millis(6));
        let mut sim = b.build();
        let n1 = NodeHost::new("n1", 1, seed, &["svc".to_owned()]);
        {
            let n1 = n1.clone();
            sim.host("n1", move || n1.clone().live());
        }
        sim.client("c1", async move {
            let c = Client::new("c1", "n1", API_PORT);
            let r = c
                .settle(Call::post("/api/tenants", serde_json::json!({"name":"x"})).keyed("k1"))
                .await;
            assert_eq!(r.status, 201, "{r}");
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(())
        });
        loop {
            trace::freeze(None);
            let done = sim.step().unwrap();
            trace::freeze(Some(sim.elapsed()));
            if done {
                break;
            }
        }
        drop(sim);
        trace::end()
    })
    .unwrap()
}
#[test]
fn one() {
    let a = run(1);
    for l in &a.lines {
        println!("{l}");
    }
    let b = run(1);
    let at = a.lines.iter().zip(&b.lines).position(|(x, y)| x != y);
    if let Some(at) = at {
        println!("DIFF\n{}\n{}", a.lines[at], b.lines[at]);
    }
    assert_eq!(a.hash, b.hash);
}
