//! Objects that all clients write, read and remove at whatever node: one kind for each kind of write
//! that the two state machines know.
//!
//! Operations are sent once. Repeated, a write without an answer could undo one that came between;
//! what is not answered stays open in the history.

use outside::ensure;
use rand::Rng as _;
use serde_json::{Value, json};

use super::client::Call;
use super::session::Session;
use crate::checks::linear::Seen;
use crate::checks::object_spec::{Kind, Object, ObjectAnswer, ObjectOp, SharedObject};
use crate::checks::{Checked, Violation};
use crate::env::trace;
use crate::facts::Reply;

/// Objects of one kind that may be in use at a time.
const IN_USE_MAX: usize = 2;
/// How likely a client makes an object where there are fewer.
const MAKES: f64 = 0.3;
/// How likely an operation is the object's last.
const REMOVES: f64 = 0.12;
/// How long a join token is good for, seconds: longer than a run of the simulation.
const TOKEN_TTL_SECS: u64 = 3600;
/// How long the `wait` of a run takes that only a cancellation ends, seconds. Longer than any clock is
/// wrong by: after a restart what is left of a wait is computed from the wall clock (decision 12).
const FOR_EVER_SECS: u64 = 100 * 24 * 3600;

impl Session {
    /// Makes, writes, reads or removes an object of some kind.
    pub(super) async fn use_object(&mut self) -> Checked {
        let kind = Kind::ALL[self.rng.random_range(0..Kind::ALL.len())];
        let in_use: Vec<usize> = {
            let objects = self.board.objects.borrow();
            (0..objects.len())
                .filter(|at| objects[*at].kind == kind && objects[*at].is_in_use())
                .collect()
        };
        if in_use.is_empty() || (in_use.len() < IN_USE_MAX && self.rng.random_bool(MAKES)) {
            return self.make_object(kind).await;
        }
        let at = in_use[self.rng.random_range(0..in_use.len())];
        self.operate_on(at).await
    }

    async fn make_object(&mut self, kind: Kind) -> Checked {
        let mark = self.mark();
        let (path, value) = match kind {
            Kind::Tenant | Kind::Suspension => {
                let id = self.make_shared_tenant(&mark).await?;
                let value = if kind == Kind::Tenant { mark } else { "Active".to_owned() };
                (format!("/api/tenants/{id}"), Some(value))
            }
            Kind::Workflow => {
                let id = self.objects_tenant(&mark).await?;
                (format!("/api/tenants/{id}/workflows/{mark}"), None)
            }
            Kind::Run => {
                let id = self.objects_tenant(&mark).await?;
                let wait = json!({ "type": "wait", "secs": FOR_EVER_SECS });
                let body = json!({ "workflow": { "steps": [{ "id": "wait", "action": wait }] } });
                let runs = format!("/api/tenants/{id}/runs");
                let run = self.make(Call::post(&runs, body).keyed(&mark), "id").await?;
                (format!("{runs}/{run}"), Some("running".to_owned()))
            }
            Kind::Token => {
                let tokens = "/api/cluster/join-tokens";
                let call = Call::post(tokens, json!({ "ttl_secs": TOKEN_TTL_SECS, "uses": 1 }));
                let id = self.make(call.keyed(&mark), "id").await?;
                (format!("{tokens}/{id}"), Some("there".to_owned()))
            }
            Kind::HttpNode => {
                let nodes = "/api/cluster/nodes";
                let body = json!({ "address": format!("http://{mark}:80") });
                let id = self.make(Call::post(nodes, body).keyed(&mark), "id").await?;
                (format!("{nodes}/{id}"), Some("there".to_owned()))
            }
        };
        trace::event(&self.name, "object", format_args!("{kind:?} {path}"), &[]);
        let initial = Object { value, is_made_by_writes: kind == Kind::Workflow };
        self.board.objects.borrow_mut().push(SharedObject::new(kind, path, initial));
        Ok(())
    }

    /// The tenant that definitions and runs are in which all clients use.
    async fn objects_tenant(&mut self, mark: &str) -> Checked<String> {
        let known = self.board.objects_tenant.borrow().clone();
        if let Some(known) = known {
            return Ok(known);
        }
        let made = self.make_shared_tenant(mark).await?;
        Ok(self.board.objects_tenant.borrow_mut().get_or_insert(made).clone())
    }

    async fn make_shared_tenant(&mut self, mark: &str) -> Checked<String> {
        let unlimited = Value::Null;
        let quota = json!({
            "max_concurrent_workflows": unlimited,
            "max_workflows_per_day": unlimited,
            "max_api_requests_per_minute": unlimited,
        });
        let body = json!({ "name": mark, "description": mark, "quota": quota });
        self.make(Call::post("/api/tenants", body).keyed(&format!("{mark}-tenant")), "id").await
    }

    async fn make(&mut self, call: Call, id: &str) -> Checked<String> {
        let reply = self.client.settle(call).await;
        ensure!(reply.status == 201, "nothing was made: {reply}");
        let id = reply.body[id].as_str().map(str::to_owned);
        id.ok_or_else(|| Violation(format!("made without an id: {reply}")))
    }

    async fn operate_on(&mut self, at: usize) -> Checked {
        let (kind, path) = {
            let object = &mut self.board.objects.borrow_mut()[at];
            object.begun += 1;
            (object.kind, object.path.clone())
        };
        let op = self.some_op(kind);
        let from = trace::now();
        let reply = self.client.anywhere(&call(kind, &path, &op)).await;
        let answer = match reply {
            Ok(reply) => match answer(kind, &path, &op, &reply)? {
                Heard::Certain(answer) => Some((trace::now(), answer)),
                Heard::Nothing => return Ok(()),
                Heard::Unknown => None,
            },
            Err(_) if op == ObjectOp::Read => return Ok(()),
            Err(_) => None,
        };
        let client = self.name.clone();
        let object = &mut self.board.objects.borrow_mut()[at];
        // A definition that was removed is made again by the next write.
        object.is_over |=
            kind != Kind::Workflow && matches!(answer, Some((_, ObjectAnswer::Absent)));
        object.history.push(Seen { client, from, answer, op });
        Ok(())
    }

    fn some_op(&mut self, kind: Kind) -> ObjectOp {
        if self.rng.random_bool(REMOVES) {
            return ObjectOp::Remove;
        }
        let writes = match kind {
            Kind::Tenant | Kind::Workflow => self.rng.random_bool(0.5).then(|| self.mark()),
            Kind::Suspension => self.rng.random_bool(0.5).then(|| {
                let suspended = self.rng.random_bool(0.5);
                if suspended { "Suspended" } else { "Active" }.to_owned()
            }),
            Kind::Run | Kind::Token | Kind::HttpNode => None,
        };
        writes.map_or(ObjectOp::Read, ObjectOp::Write)
    }
}

/// The call that an operation is.
fn call(kind: Kind, path: &str, op: &ObjectOp) -> Call {
    match (kind, op) {
        (Kind::Tenant, ObjectOp::Write(value)) => Call::put(path, json!({ "description": value })),
        (Kind::Suspension, ObjectOp::Write(value)) => {
            let verb = if value == "Active" { "activate" } else { "suspend" };
            Call::post(format!("{path}/{verb}"), Value::Null)
        }
        (_, ObjectOp::Write(value)) => {
            let action = json!({ "type": "set", "output": null });
            let step = json!({ "id": "end", "description": value, "action": action });
            Call::put(path, json!({ "steps": [step] }))
        }
        (Kind::Run, ObjectOp::Remove) => Call::post(format!("{path}/cancel"), Value::Null),
        (_, ObjectOp::Remove) => Call::delete(path),
        (Kind::Token, ObjectOp::Read) => {
            Call::get(path.rsplit_once('/').map_or(path, |(tokens, _)| tokens))
        }
        (_, ObjectOp::Read) => Call::get(path),
    }
}

/// What a reply says of an operation.
enum Heard {
    /// How it ended.
    Certain(ObjectAnswer),
    /// That it changed nothing.
    Nothing,
    /// Nothing: it may have taken effect.
    Unknown,
}

fn answer(kind: Kind, path: &str, op: &ObjectOp, reply: &Reply) -> Checked<Heard> {
    let is_read = *op == ObjectOp::Read;
    let certain = match (reply.status, is_read) {
        (200, true) => says(kind, path, &reply.body),
        (200 | 201, false) => ObjectAnswer::Done,
        (404, _) => ObjectAnswer::Absent,
        (409, false) if kind == Kind::Run => ObjectAnswer::Absent,
        // A refusal for want of room is certain, as is one that says so.
        (507, _) => return Ok(Heard::Nothing),
        (500.., _) if is_read || reply.body["applied"] == false => return Ok(Heard::Nothing),
        (500.., _) => return Ok(Heard::Unknown),
        _ => return Err(Violation(format!("{kind:?}: refused: {reply}"))),
    };
    Ok(Heard::Certain(certain))
}

fn says(kind: Kind, path: &str, body: &Value) -> ObjectAnswer {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let said = match kind {
        Kind::Tenant => text(&body["description"]),
        Kind::Suspension => text(&body["status"]),
        Kind::Workflow => text(&body["spec"]["steps"][0]["description"]),
        // A cancelled run is there; as an object it is no more.
        Kind::Run => (body["status"] != "cancelled").then(|| "running".to_owned()),
        Kind::Token => {
            let id = path.rsplit_once('/').map_or("", |(_, id)| id);
            let tokens = body["join_tokens"].as_array().into_iter().flatten();
            tokens.into_iter().any(|token| token["id"] == id).then(|| "there".to_owned())
        }
        Kind::HttpNode => Some("there".to_owned()),
    };
    said.map_or(ObjectAnswer::Absent, ObjectAnswer::Says)
}
