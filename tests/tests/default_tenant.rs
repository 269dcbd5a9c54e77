//! `--default-tenant`: the tenant of requests at short paths that name none.

use serde_json::{Value, json};
use tests::{Client, Cluster, Server, Tenant, eventually, spec};

const NAME: [&str; 2] = ["--default-tenant", "Team A"];

/// Starts a run at the short path, once the node knows for whom; gives the run's id.
async fn run_at_short_path(client: &Client) -> String {
    eventually("the default tenant is known", async || {
        let reply = client.post("/api/runs", spec::inline([spec::set("a", 1)])).await;
        if reply.status == 503 {
            assert_eq!(reply.json()["code"], "starting", "{reply}");
            return None;
        }
        Some(reply.expect(201)["id"].as_str().expect("an id").to_owned())
    })
    .await
}

/// The ids of the tenants of this name.
async fn named(client: &Client, name: &str) -> Vec<String> {
    let tenants = client.get("/api/tenants").await.expect(200)["tenants"].clone();
    let named = tenants.as_array().expect("a list").iter().filter(|it| it["name"] == name);
    named.map(|tenant| tenant["id"].as_str().expect("an id").to_owned()).collect()
}

#[tokio::test]
async fn a_tenant_that_is_named_is_made_once_and_serves_the_short_paths() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = Server::start(&folder, &NAME).await;
    let client = server.client();
    let run = run_at_short_path(&client).await;
    let [id] = &named(&client, "Team A").await[..] else { panic!("one tenant") };
    let tenant = Tenant { id: id.clone(), client: client.clone() };
    assert_eq!(tenant.run(&run).await["id"], run.as_str());
    assert_eq!(client.get(&format!("/api/runs/{run}")).await.expect(200)["id"], run.as_str());
    // Who names another gets the other.
    let other = Tenant::create(&client, spec::unlimited()).await;
    let of_other = client.call("GET", "/api/runs").header("x-tenant-id", &other.id);
    assert_eq!(of_other.try_send().await.expect("an answer").expect(200)["runs"], json!([]));
    let nobody = client.call("GET", "/api/runs").header("x-tenant-id", "");
    assert_eq!(nobody.try_send().await.expect("an answer").status, 404);

    server.kill9();
    let again = Server::start(&folder, &NAME).await;
    run_at_short_path(&again.client()).await;
    assert_eq!(&named(&again.client(), "Team A").await, std::slice::from_ref(id));
    assert_eq!(tenant_runs(&again.client(), id).await.as_array().map(Vec::len), Some(2));
}

async fn tenant_runs(client: &Client, id: &str) -> Value {
    client.get(&format!("/api/tenants/{id}/runs")).await.expect(200)["runs"].clone()
}

#[tokio::test]
async fn nodes_that_start_together_make_one_tenant() {
    let cluster = Cluster::of(3, &NAME).await;
    for node in 0..3 {
        run_at_short_path(&cluster.client(node)).await;
    }
    let [id] = &named(&cluster.client(0), "Team A").await[..] else { panic!("one tenant") };
    assert_eq!(tenant_runs(&cluster.client(1), id).await.as_array().map(Vec::len), Some(3));
}

#[tokio::test]
async fn a_tenant_may_be_given_by_its_id_and_a_node_without_one_asks_for_one() {
    let id = "10000000-0000-4000-8000-000000000007";
    let server = Server::alone(&["--default-tenant", id]).await;
    let reply = server.client().get("/api/runs").await;
    reply.problem(404, "not_found");
    assert_eq!(named(&server.client(), id).await, [] as [String; 0], "none is made for an id");
    let without = Server::alone(&[]).await;
    without.client().get("/api/runs").await.problem(400, "tenant_required");
}
