//! Request bodies: workflow specs, steps and quotas.

use serde_json::{Map, Value, json};

/// All five quotas without a limit.
pub fn unlimited() -> Value {
    json!({
        "max_concurrent_workflows": null,
        "max_workflows_per_day": null,
        "max_routines": null,
        "max_storage_bytes": null,
        "max_api_requests_per_minute": null,
    })
}

/// No limits but this one.
pub fn only(quota: &str, limit: u64) -> Value {
    let mut all = unlimited();
    all[quota] = json!(limit);
    all
}

/// The body of `POST /runs` with the workflow in it.
pub fn inline(steps: impl IntoIterator<Item = Value>) -> Value {
    json!({ "workflow": workflow(steps) })
}

/// The same with an input.
pub fn inline_with(input: Value, steps: impl IntoIterator<Item = Value>) -> Value {
    json!({ "workflow": workflow(steps), "input": input })
}

/// A workflow whose steps say themselves what they depend on.
pub fn workflow(steps: impl IntoIterator<Item = Value>) -> Value {
    json!({ "steps": steps.into_iter().collect::<Vec<_>>() })
}

/// A step with any action.
pub fn step(id: &str, action: Value) -> Value {
    json!({ "id": id, "action": action })
}

/// A step that is its output.
pub fn set(id: &str, output: impl Into<Value>) -> Value {
    step(id, json!({ "type": "set", "output": output.into() }))
}

/// A step that waits.
pub fn wait(id: &str, secs: f64) -> Value {
    step(id, json!({ "type": "wait", "secs": secs }))
}

/// A step that calls `url`.
pub fn http(id: &str, method: &str, url: &str) -> Value {
    step(id, json!({ "type": "http", "method": method, "url": url }))
}

/// `step` with further fields, which replace those that are there.
#[must_use]
pub fn with(mut step: Value, fields: Value) -> Value {
    let more: Map<String, Value> = fields.as_object().cloned().expect("an object of fields");
    step.as_object_mut().expect("a step").extend(more);
    step
}

/// `step`, after these.
#[must_use]
pub fn after(step: Value, needs: &[&str]) -> Value {
    with(step, json!({ "depends_on": needs }))
}

/// The steps of a chain of `set` steps `s1`, `s2`, ... each after the one before.
pub fn chain(length: usize) -> Vec<Value> {
    (1..=length)
        .map(|at| {
            let step = set(&format!("s{at}"), at);
            if at == 1 { step } else { after(step, &[&format!("s{}", at - 1)]) }
        })
        .collect()
}
