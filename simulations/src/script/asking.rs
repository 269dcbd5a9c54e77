//! What a script asks nodes for: how it is put, and what a transcript has of the answer.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use outside::Broken;
use serde_json::{Value, json};

use super::parse::Request;
use crate::checks::{Checked, Violation};
use crate::facts::Reply;
use crate::plan::API_PORT;
use crate::workload::client::{Call, Client};
use crate::world::{World, folder};

/// The host that asks what the script wants asked.
pub(super) const CLERK: &str = "clerk";
/// Pause between two looks at what is to be asked.
const CLERK_PAUSE: Duration = Duration::from_millis(2);
/// What of an answer stands in a transcript.
const FIELDS: [&str; 7] =
    ["acquired", "released", "holder", "description", "status", "code", "applied"];

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
    /// The largest token of each key.
    last_tokens: BTreeMap<String, u64>,
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
            Request::Runs(name) => Call::get(tenant(name, "/runs")?),
            Request::WhoLeads => Call::get("/api/cluster/leader"),
            Request::StepDown => Call::post("/api/cluster/leader/step-down", Value::Null),
        })
    }

    /// Takes in an answer, and says what a transcript has of it: nothing that chance or the moment
    /// decides, such as which of two nodes won an election.
    pub(super) fn take(&mut self, request: &Request, reply: &Reply, world: &World) -> String {
        let mut text = reply.status.to_string();
        if reply.body.get("leader").is_some() {
            let id = reply.body["leader"]["id"].as_str();
            let leader = world.leader().map(|(at, _)| world.host(at));
            text.push_str(match (id, leader) {
                (None, _) => ", names nobody",
                (Some(id), Some(leader)) if leader.is_called(id) => ", names the leader",
                (Some(_), _) => ", names somebody else",
            });
        }
        for field in FIELDS {
            // Writing to a String cannot fail.
            let _ = match &reply.body[field] {
                Value::Bool(true) => write!(text, ", {field}"),
                Value::Bool(false) => write!(text, ", not {field}"),
                Value::String(value) => write!(text, ", {field} {value:?}"),
                _ => Ok(()),
            };
        }
        if let Some(reason) = self.out_of_service(reply) {
            // Writing to a String cannot fail.
            let _ = write!(text, ", {reason:?}");
        }
        match request {
            Request::Acquire(key, holder, ..) | Request::Renew(key, holder, _) => {
                if let Some(token) = reply.body["token"].as_u64() {
                    text.push_str(self.note_token(key, holder, token));
                }
            }
            Request::Create(name) => {
                if let Some(id) = reply.body["id"].as_str().filter(|_| reply.status == 201) {
                    self.tenants.insert(name.clone(), id.to_owned());
                }
            }
            Request::Runs(_) => {
                if let Some(runs) = reply.body["runs"].as_array() {
                    // Writing to a String cannot fail.
                    let _ = write!(text, ", runs: {}", runs.len());
                }
            }
            _ => {}
        }
        text
    }

    /// Why a tenant is out of service, with its name in place of its id.
    fn out_of_service(&self, reply: &Reply) -> Option<String> {
        let detail = reply.body["detail"].as_str().filter(|_| reply.code() == "internal")?;
        let named = |text: String, (name, id): (&String, &String)| text.replace(id, name);
        Some(self.tenants.iter().fold(detail.to_owned(), named))
    }

    /// The folder of a tenant.
    ///
    /// # Errors
    /// When there is no such tenant.
    pub(super) fn folder(&self, name: &str) -> Checked<String> {
        let id = self.tenants.get(name);
        let id = id.ok_or_else(|| Violation(format!("there is no tenant {name}")))?;
        Ok(folder(id))
    }

    fn note_token(&mut self, key: &str, holder: &str, token: u64) -> &'static str {
        self.tokens.insert((key.to_owned(), holder.to_owned()), token);
        let last = self.last_tokens.entry(key.to_owned()).or_default();
        let says = match token.cmp(last) {
            Ordering::Greater => ", a new token",
            Ordering::Equal => ", the same token",
            Ordering::Less => ", AN OLDER TOKEN",
        };
        *last = token.max(*last);
        says
    }
}
