//! Nothing acknowledged is lost, and nothing is there that nobody asked for.

use outside::checks::runs;
use outside::ensure;
use serde_json::Value;

use super::Checked;
use crate::facts::{Reply, RunModel, TenantModel};

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
pub fn listed(tenant: &TenantModel, owner: &str, reply: &Reply) -> Checked {
    let known = &tenant.runs;
    ensure!(reply.status == 200, "runs cannot be listed: {reply}");
    let listed = reply.body["runs"].as_array().map_or(&[][..], Vec::as_slice);
    let acknowledged = known.iter().map(|(id, run)| (id.as_str(), run.mark.as_str()));
    let by_mark = runs::acknowledged(listed, acknowledged)?;
    for run in known.values() {
        ended(run, by_mark[run.mark.as_str()])?;
    }
    let own = by_mark.keys().filter(|mark| mark.starts_with(owner));
    let own = own.filter(|mark| !tenant.unsure.contains(**mark)).count();
    ensure!(own == known.len(), "{own} runs of {owner}, but {} are known: {reply}", known.len());
    Ok(())
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
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn run(id: &str, mark: &str) -> Value {
        json!({ "id": id, "input": { "mark": mark }, "status": "running" })
    }

    #[test]
    fn a_tenant_that_is_lost_changed_or_back_is_noticed() {
        let known = TenantModel { name: "n".into(), description: "d".into(), ..Default::default() };
        let body =
            |description| json!({ "name": "n", "description": description, "status": "Active" });
        assert_eq!(tenant(&known, &Reply::of(200, body("d"))), Ok(()));
        assert!(tenant(&known, &Reply::of(200, body("older"))).is_err());
        assert!(tenant(&known, &Reply::of(404, Value::Null)).is_err());
        let known = TenantModel { deleted: true, ..known };
        assert_eq!(tenant(&known, &Reply::of(404, Value::Null)), Ok(()));
        assert!(tenant(&known, &Reply::of(200, body("d"))).is_err());
    }

    #[test]
    fn a_definition_of_another_version_is_noticed() {
        let known = TenantModel { workflow: Some((2, "m".into())), ..Default::default() };
        let body = |version, mark| json!({ "version": version, "spec": { "steps": [{ "description": mark }] } });
        assert_eq!(workflow(&known, &Reply::of(200, body(2, "m"))), Ok(()));
        for (version, mark) in [(1, "m"), (2, "other")] {
            assert!(workflow(&known, &Reply::of(200, body(version, mark))).is_err());
        }
        assert!(workflow(&TenantModel::default(), &Reply::of(200, body(1, "m"))).is_err());
    }

    #[test]
    fn runs_that_are_lost_doubled_or_nobodys_are_noticed() {
        let model = RunModel { mark: "c-1".into(), steps: Vec::new(), ended: None };
        let mut known =
            TenantModel { runs: BTreeMap::from([("a".into(), model)]), ..Default::default() };
        let seen = |runs: &[Value]| Reply::of(200, json!({ "runs": runs }));
        let (one, two) = (run("a", "c-1"), run("b", "c-2"));
        assert_eq!(listed(&known, "c-", &seen(&[one.clone(), run("x", "d-1")])), Ok(()));
        let broken: [&[Value]; 4] =
            [&[], &[one.clone(), run("b", "c-1")], &[run("b", "c-1")], &[one.clone(), two.clone()]];
        for broken in broken {
            assert!(listed(&known, "c-", &seen(broken)).is_err(), "{broken:?}");
        }
        known.unsure.insert("c-2".into());
        assert_eq!(listed(&known, "c-", &seen(&[one.clone(), two])), Ok(()));
        known.runs.values_mut().for_each(|run| run.ended = Some(json!("as it ended")));
        assert!(listed(&known, "c-", &seen(&[one])).is_err());
    }
}
