//! The program as such, with work under way: signals, its files. `node/tests/program.rs` has the rest.

use std::time::Duration;

use tests::{Server, Tenant, files, spec};
use tokio::time::Instant;

#[tokio::test]
async fn sigterm_and_sigint_exit_0_within_ten_seconds() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut server = Server::alone(&[]).await;
        let tenant = Tenant::create(&server.client(), spec::unlimited()).await;
        tenant.start(spec::inline([spec::wait("w", 600.0)])).await;
        // A long poll under way must not hold it up.
        let poll = tenant.start(spec::inline([spec::wait("w", 600.0)])).await;
        let waiting = tenant.clone();
        let poll = tokio::spawn(async move {
            let path = waiting.path(&format!("/runs/{poll}?wait_secs=50"));
            let _ = waiting.client.call("GET", &path).try_send().await;
        });
        let started = Instant::now();
        server.signal(signal);
        let exit = server.wait(Duration::from_secs(10)).await.expect("it ends in time");
        assert_eq!(exit.code, Some(0), "{}", exit.output);
        assert!(started.elapsed() < Duration::from_secs(10));
        assert!(!exit.output.contains("panicked"), "{}", exit.output);
        tokio::time::timeout(Duration::from_secs(5), poll).await.expect("answered").expect("done");
    }
}

#[tokio::test]
async fn the_files_of_a_data_dir_are_where_the_manual_says() {
    let mut server = Server::alone(&[]).await;
    let tenant = Tenant::create(&server.client(), spec::unlimited()).await;
    tenant.finished(spec::inline([spec::set("a", 1)])).await;
    let data = server.data();
    for file in ["node.json", "node.lock", "system.redb"] {
        assert!(data.join(file).is_file(), "{file}");
    }
    for folder in ["identity", "log", "tenants"] {
        assert!(data.join(folder).is_dir(), "{folder}");
    }
    server.term().await;
    let events = files::tenant(&data, &tenant.id).join("events.jsonl");
    let events = files::events(&events).expect("a valid log").expect("whole lines");
    assert!(events.len() >= 5, "{events:#?}");
}
