//! Plain facts: what clients were told, and what they know of what they made. Checks compare them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde_json::Value;

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The request line it answers, for messages.
    pub asked: String,
    /// The status code.
    pub status: u16,
    /// The body, null when it is not JSON.
    pub body: Value,
    /// The version that its `ETag` names.
    pub version: Option<u64>,
    /// When the request was first sent, since the start of the run.
    pub first_sent_at: Duration,
    /// When the call that brought it was sent.
    pub sent_at: Duration,
    /// Whether an earlier call of the same request may have taken effect.
    pub retried: bool,
}

/// A tenant, as its one owner knows it.
#[derive(Debug, Clone, Default)]
pub struct TenantModel {
    /// The id.
    pub id: String,
    /// The name.
    pub name: String,
    /// The description of the last update.
    pub description: String,
    /// Whether it is suspended.
    pub suspended: bool,
    /// Whether it was deleted.
    pub deleted: bool,
    /// Version and mark of the definition.
    pub workflow: Option<(u64, String)>,
    /// The quotas it was made with.
    pub limits: Limits,
    /// The runs that this client was told of, by id.
    pub runs: BTreeMap<String, RunModel>,
    /// The marks of starts that were refused in the end, and of which an earlier call may still be
    /// under way: a refusal uses up no idempotency key.
    pub unsure: BTreeSet<String>,
}

/// A run, as the client that started it knows it.
#[derive(Debug, Clone)]
pub struct RunModel {
    /// What makes the start unique: in the input, and in the output of the last step.
    pub mark: String,
    /// The ids of its steps.
    pub steps: Vec<String>,
    /// The run, once it was seen to have ended.
    pub ended: Option<Value>,
}

/// What a tenant was made with and keeps: the limits that the log must respect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Runs at the same time.
    pub concurrent: Option<u64>,
    /// Runs a day.
    pub per_day: Option<u64>,
}

impl Reply {
    /// An answer of the first moment, for tests of checks.
    #[cfg(test)]
    pub(crate) fn of(status: u16, body: Value) -> Self {
        let (first_sent_at, sent_at) = (Duration::ZERO, Duration::ZERO);
        let (asked, version, retried) = ("GET".to_owned(), None, false);
        Self { asked, status, body, version, first_sent_at, sent_at, retried }
    }

    /// Whether it says that the request was done.
    pub fn is_success(&self) -> bool {
        self.status / 100 == 2
    }

    /// The code of a refusal.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// Whether it says for sure what became of the request.
    pub(crate) fn is_final(&self) -> bool {
        self.status < 500
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let again = if self.retried { " (asked again)" } else { "" };
        write!(f, "{}{again} -> {} {}", self.asked, self.status, self.body)
    }
}
