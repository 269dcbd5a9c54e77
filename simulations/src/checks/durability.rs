//! Nothing acknowledged is lost, and nothing is there that nobody asked for.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Checked, Violation};
use crate::client::Reply;
use crate::ensure;
use crate::workload::{RunModel, TenantModel};

/// A tenant is as its last acknowledged change left it.
///
/// # Errors
/// When it is not.
pub fn tenant(known: &TenantModel, reply: &Reply) -> Checked {
    if known.deleted {
        ensure!(reply.status == 404, "deleted tenant {} is back: {reply}", known.id);
        return Ok(());
    }
    ensure!(reply.status == 200, "acknowledged tenant {} is lost: {reply}", known.id);
    let seen = &reply.body;
    let status = if known.suspended { "Suspended" } else { "Active" };
    ensure!(
        seen["name"] == known.name.as_str()
            && seen["description"] == known.description.as_str()
            && seen["status"] == status,
        "tenant {} should be {} {:?} {status}: {reply}",
        known.id,
        known.name,
        known.description
    );
    Ok(())
}

/// The definition is the last acknowledged one, with its version.
///
/// # Errors
/// When it is not.
pub fn workflow(known: &TenantModel, reply: &Reply) -> Checked {
    let Some((version, mark)) = &known.workflow else {
        ensure!(reply.status == 404, "nobody defined a workflow: {reply}");
        return Ok(());
    };
    ensure!(reply.status == 200, "version {version} of a workflow is lost: {reply}");
    let defined = &reply.body["spec"]["steps"][0]["description"];
    ensure!(
        reply.body["version"] == *version && defined == mark.as_str(),
        "the workflow should be version {version} with {mark}: {reply}"
    );
    Ok(())
}

/// Every acknowledged run is in the list, each start made one run, and what has ended stays as it
/// was.
///
/// # Errors
/// When not.
pub fn runs(tenant: &TenantModel, owner: &str, reply: &Reply) -> Checked {
    let known = &tenant.runs;
    ensure!(reply.status == 200, "runs cannot be listed: {reply}");
    let empty = Vec::new();
    let listed = reply.body["runs"].as_array().unwrap_or(&empty);
    let mut by_mark: BTreeMap<&str, &Value> = BTreeMap::new();
    for run in listed {
        let mark = mark_of(run);
        let before = by_mark.insert(mark, run);
        ensure!(before.is_none(), "{mark} was started twice: {run} and {before:?}");
    }
    for (id, known) in known {
        let found = by_mark.get(known.mark.as_str());
        let found = found.ok_or_else(|| {
            Violation(format!(
                "acknowledged run {id} with {} is not in {}",
                known.mark, reply.asked
            ))
        })?;
        ensure!(found["id"] == id.as_str(), "{} became another run: {found}", known.mark);
        ended(known, found)?;
    }
    let own = by_mark.keys().filter(|mark| mark.starts_with(owner));
    let own = own.filter(|mark| !tenant.unsure.contains(**mark)).count();
    ensure!(own == known.len(), "{own} runs of {owner}, but {} are known: {reply}", known.len());
    Ok(())
}

/// What makes a run's start unique: it is in the input, or, of a job, the id of its first step.
fn mark_of(run: &Value) -> &str {
    let of_job = || {
        let steps = run["steps"].as_array().into_iter().flatten();
        steps.filter_map(|step| step["id"].as_str()).find(|id| *id != "end")
    };
    run["input"]["mark"].as_str().or_else(of_job).unwrap_or_default()
}

/// A run that was seen to have ended has not changed since.
///
/// # Errors
/// When it has.
pub fn ended(known: &RunModel, seen: &Value) -> Checked {
    let Some(ended) = &known.ended else { return Ok(()) };
    ensure!(ended == seen, "an ended run changed from {ended} to {seen}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::workload::RunModel;

    fn reply(status: u16, body: Value) -> Reply {
        Reply {
            asked: "GET".into(),
            status,
            body,
            version: None,
            first_sent_at: Duration::ZERO,
            sent_at: Duration::ZERO,
            retried: false,
        }
    }

    fn run(id: &str, mark: &str) -> Value {
        json!({ "id": id, "input": { "mark": mark }, "status": "running" })
    }

    #[test]
    fn a_tenant_that_is_lost_changed_or_back_is_noticed() {
        let known = TenantModel { name: "n".into(), description: "d".into(), ..Default::default() };
        let body =
            |description| json!({ "name": "n", "description": description, "status": "Active" });
        assert_eq!(tenant(&known, &reply(200, body("d"))), Ok(()));
        assert!(tenant(&known, &reply(200, body("older"))).is_err());
        assert!(tenant(&known, &reply(404, Value::Null)).is_err());
        let known = TenantModel { deleted: true, ..known };
        assert_eq!(tenant(&known, &reply(404, Value::Null)), Ok(()));
        assert!(tenant(&known, &reply(200, body("d"))).is_err());
    }

    #[test]
    fn a_definition_of_another_version_is_noticed() {
        let known = TenantModel { workflow: Some((2, "m".into())), ..Default::default() };
        let body = |version, mark| json!({ "version": version, "spec": { "steps": [{ "description": mark }] } });
        assert_eq!(workflow(&known, &reply(200, body(2, "m"))), Ok(()));
        for (version, mark) in [(1, "m"), (2, "other")] {
            assert!(workflow(&known, &reply(200, body(version, mark))).is_err());
        }
        assert!(workflow(&TenantModel::default(), &reply(200, body(1, "m"))).is_err());
    }

    #[test]
    fn runs_that_are_lost_doubled_or_nobodys_are_noticed() {
        let model = RunModel { mark: "c-1".into(), steps: Vec::new(), ended: None };
        let mut known =
            TenantModel { runs: BTreeMap::from([("a".into(), model)]), ..Default::default() };
        let seen = |runs: &[Value]| reply(200, json!({ "runs": runs }));
        let (one, two) = (run("a", "c-1"), run("b", "c-2"));
        assert_eq!(runs(&known, "c-", &seen(&[one.clone(), run("x", "d-1")])), Ok(()));
        let broken: [&[Value]; 4] =
            [&[], &[one.clone(), run("b", "c-1")], &[run("b", "c-1")], &[one.clone(), two.clone()]];
        for broken in broken {
            assert!(runs(&known, "c-", &seen(broken)).is_err(), "{broken:?}");
        }
        known.unsure.insert("c-2".into());
        assert_eq!(runs(&known, "c-", &seen(&[one.clone(), two])), Ok(()));
        known.runs.values_mut().for_each(|run| run.ended = Some(json!("as it ended")));
        assert!(runs(&known, "c-", &seen(&[one])).is_err());
    }
}
