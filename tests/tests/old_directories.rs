//! Data directories that earlier versions of the program wrote still open.
//!
//! Each folder below `tests/data` is what a node left behind when it was killed: nothing in it was
//! flushed for the occasion. A folder is never written again; a change of a layout adds another.

use std::path::Path;

use serde_json::json;
use tempfile::TempDir;
use tests::{Server, Tenant, files, spec};

/// The tenant `acme` of every folder.
const ACME: &str = "60ccb9cd-efa3-4f55-99b8-942f70e2aa9b";
/// A run of `greet` that had completed.
const GREETED: &str = "253e3fcd-ede5-4f33-86f6-e4d9a60270b6";
/// A run that failed because nobody listened at its target.
const REFUSED: &str = "9d98c53b-91a9-4383-b1fb-f7a5fa379b22";
/// A run whose only step waits for an hour.
const WAITING: &str = "18e9ada2-b426-4227-a337-1c3ddfe97bb3";
/// A job, and the run that was started with it.
const JOB: &str = "0ecbc620-8f81-4b81-bd04-d89becf6e87a";
const RUN_OF_JOB: &str = "db8945f6-e04c-4114-a8ba-439eb9a5905e";
/// A tenant that was deleted.
const DELETED: &str = "ceb99fc8-3e90-4ff6-95ef-aef4694ae540";

#[tokio::test]
async fn a_directory_of_command_version_2_opens_with_all_that_it_held() {
    opens_whole("version-2").await;
}

async fn opens_whole(name: &str) {
    let folder = TempDir::new().expect("a temporary folder");
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name);
    files::copy(&kept, &folder.path().join("data"));
    let server = Server::start(&folder, &[]).await;
    let client = server.client();
    let acme = Tenant { id: ACME.to_owned(), client: client.clone() };

    let record = acme.get("").await.expect(200);
    assert_eq!(record["name"], "acme");
    assert_eq!(record["created_at"], "2026-11-28T22:58:14.887Z");
    client.get(&format!("/api/tenants/{DELETED}")).await.problem(404, "not_found");

    let greet = acme.get("/workflows/greet").await.expect(200);
    assert_eq!(greet["version"], 1);
    let greeted = acme.run(GREETED).await;
    assert_eq!(greeted["output"], json!({ "b": "hello you!" }));
    assert_eq!(greeted["completed_at"], "2026-11-28T22:58:31.554Z");
    assert_eq!(acme.run(REFUSED).await["status"], "failed");
    assert!(["running", "completed"].map(Into::into).contains(&acme.run(WAITING).await["status"]));
    assert_eq!(acme.get(&format!("/jobs/{JOB}")).await.expect(200)["name"], "j");
    assert_eq!(acme.run(RUN_OF_JOB).await["output"], json!({ "a": 1 }));

    // Locks get their full terms anew from whoever leads: an hour has not passed since the start.
    for lock in [acme.path("/locks/build"), "/api/locks/deploy".to_owned()] {
        assert_eq!(client.get(&lock).await.expect(200)["holder"], "me", "{lock}");
    }

    // The files go on where they were: numbers of events have no gap, and new work is done.
    let input = json!({ "who": "again" });
    let run = acme.finished(json!({ "workflow_name": "greet", "input": input })).await;
    assert_eq!(run["output"], json!({ "b": "hello again!" }));
    acme.finished(spec::inline([spec::set("a", 1)])).await;
    let path = files::tenant(&server.data(), ACME).join("events.jsonl");
    let events = files::events(&path).expect("whole events").expect("a whole last line");
    assert!(events.iter().any(|event| event["run_id"] == GREETED), "{events:#?}");
}
