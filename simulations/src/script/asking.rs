//! What a script asks nodes for: how it is put, and what a transcript has of the answer.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};

use super::parse::Request;
use crate::checks::{Checked, Violation};
use crate::client::{Broken, Call, Client, Reply};
use crate::world::{API_PORT, World};

/// The host that asks what the script wants asked.
pub(super) const CLERK: &str = "clerk";
/// Pause between two looks at what is to be asked.
const CLERK_PAUSE: Duration = Duration::from_millis(2);
/// What of an answer stands in a transcript.
const FIELDS: [&str; 9] =
    ["acquired", "released", "token", "holder", "description", "status", "term", "code", "applied"];

/// What is to be asked, and what was answered.
#[derive(Default)]
pub(super) struct Desk {
    pub(super) asked: RefCell<VecDeque<Asked>>,
    pub(super) answers: RefCell<BTreeMap<usize, Result<Reply, Broken>>>,
    pub(super) is_closed: Cell<bool>,
}

pub(super) struct Asked {
    pub(super) number: usize,
    /// The node, by its place.
    pub(super) at: usize,
    pub(super) call: Call,
}

/// Asks what lies on the desk, each request over a connection of its own.
///
/// # Errors
/// Never.
pub(super) async fn serve(desk: Rc<Desk>, names: Vec<String>) -> turmoil::Result {
    while !desk.is_closed.get() {
        while let Some(Asked { number, at, call }) = desk.asked.borrow_mut().pop_front() {
            let desk = Rc::clone(&desk);
            let client = Client::new(CLERK, names.clone(), API_PORT, 0);
            tokio::task::spawn_local(async move {
                let answer = client.call_at(at, &call).await;
                desk.answers.borrow_mut().insert(number, answer);
            });
        }
        tokio::time::sleep(CLERK_PAUSE).await;
    }
    Ok(())
}

/// What a script has learned from answers, and needs for later requests.
#[derive(Default)]
pub(super) struct Book {
    /// The last token of each key and holder.
    tokens: BTreeMap<(String, String), u64>,
    /// The tenants' ids by their names.
    tenants: BTreeMap<String, String>,
}

impl Book {
    /// The call that makes a request.
    ///
    /// # Errors
    /// When it names what there is not.
    pub(super) fn call(&self, request: &Request) -> Checked<Call> {
        let lock = |key: &str, verb: &str| format!("/api/locks/{key}/{verb}");
        let token = |key: &str, holder: &str| {
            let known = self.tokens.get(&(key.to_owned(), holder.to_owned()));
            known.ok_or_else(|| Violation(format!("{holder} never held {key}")))
        };
        let tenant = |name: &str, rest: &str| {
            let id = self.tenants.get(name);
            let id = id.ok_or_else(|| Violation(format!("there is no tenant {name}")))?;
            Ok::<_, Violation>(format!("/api/tenants/{id}{rest}"))
        };
        Ok(match request {
            Request::Acquire(key, holder, ttl, wait) => {
                let (ttl, wait_secs) = (ttl.as_secs_f64(), wait.as_secs_f64());
                let body = json!({ "holder": holder, "ttl_secs": ttl, "wait_secs": wait_secs });
                Call::post(lock(key, "acquire"), body).waiting(*wait)
            }
            Request::Renew(key, holder, ttl) => {
                let (ttl, token) = (ttl.as_secs_f64(), token(key, holder)?);
                let body = json!({ "holder": holder, "token": token, "ttl_secs": ttl });
                Call::post(lock(key, "renew"), body)
            }
            Request::Release(key, holder) => {
                let body = json!({ "holder": holder, "token": token(key, holder)? });
                Call::post(lock(key, "release"), body)
            }
            Request::Create(name) => Call::post("/api/tenants", json!({ "name": name })),
            Request::Describe(name, word) => {
                Call::put(tenant(name, "")?, json!({ "description": word }))
            }
            Request::Look(name) => Call::get(tenant(name, "")?),
            Request::Run(name) => {
                let step = json!({ "id": "a", "action": { "type": "set", "output": "done" } });
                let body = json!({ "workflow": { "steps": [step] } });
                Call::post(tenant(name, "/runs?wait_secs=5")?, body).waiting(Duration::from_secs(5))
            }
            Request::WhoLeads => Call::get("/api/cluster/leader"),
            Request::StepDown => Call::post("/api/cluster/leader/step-down", Value::Null),
        })
    }

    /// Takes in an answer.
    pub(super) fn learn(&mut self, request: &Request, reply: &Reply) {
        match (request, &reply.body) {
            (Request::Acquire(key, holder, ..), body) => {
                if let Some(token) = body["token"].as_u64().filter(|_| body["acquired"] == true) {
                    self.tokens.insert((key.clone(), holder.clone()), token);
                }
            }
            (Request::Create(name), body) => {
                if let Some(id) = body["id"].as_str().filter(|_| reply.status == 201) {
                    self.tenants.insert(name.clone(), id.to_owned());
                }
            }
            _ => {}
        }
    }
}

/// What of an answer is told: nothing that chance or the moment decides.
pub(super) fn say(reply: &Reply, world: &World) -> String {
    let mut text = reply.status.to_string();
    let leader = &reply.body["leader"];
    if let Some(id) = leader["id"].as_str() {
        let host = (0..world.nodes()).find(|at| world.host(*at).is_called(id));
        let name = host.map_or("?", |at| world.host(at).name());
        let _ = write!(text, ", {name} leads");
    } else if leader.is_null() && reply.body.get("leader").is_some() {
        text.push_str(", nobody leads");
    }
    for field in FIELDS {
        match &reply.body[field] {
            Value::Null => {}
            Value::Number(_) if field == "status" => {}
            Value::String(value) => drop(write!(text, ", {field} {value}")),
            Value::Bool(true) => drop(write!(text, ", {field}")),
            Value::Bool(false) => drop(write!(text, ", not {field}")),
            value => drop(write!(text, ", {field} {value}")),
        }
    }
    text
}
