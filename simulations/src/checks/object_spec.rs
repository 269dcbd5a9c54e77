//! One object that clients write, read and remove, as if one after the other used it.
//!
//! It stands for every kind of thing that the two state machines keep: tenants, definitions, runs,
//! join tokens, nodes registered over HTTP. Once removed, an object that clients cannot make under
//! the same name stays away; a definition comes back with the next write.

use stateright::semantics::SequentialSpec;

use super::Checked;
use super::linear::{self, OPS_MAX, Seen};

/// An object, as the order of operations so far has made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// What it says; none where there is no such object.
    pub value: Option<String>,
    /// Whether a write makes one where there is none.
    pub is_made_by_writes: bool,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectOp {
    /// To say this from now on.
    Write(String),
    /// To tell what it says.
    Read,
    /// To be no more.
    Remove,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectAnswer {
    /// Written, or removed.
    Done,
    /// It says this.
    Says(String),
    /// There is no such object.
    Absent,
}

impl SequentialSpec for Object {
    type Op = ObjectOp;
    type Ret = ObjectAnswer;

    fn invoke(&mut self, op: &ObjectOp) -> ObjectAnswer {
        match (op, &self.value) {
            (ObjectOp::Write(value), before) if before.is_some() || self.is_made_by_writes => {
                self.value = Some(value.clone());
                ObjectAnswer::Done
            }
            (ObjectOp::Read, Some(value)) => ObjectAnswer::Says(value.clone()),
            (ObjectOp::Remove, Some(_)) => {
                self.value = None;
                ObjectAnswer::Done
            }
            (ObjectOp::Write(_) | ObjectOp::Read | ObjectOp::Remove, _) => ObjectAnswer::Absent,
        }
    }
}

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A tenant; its description is written.
    Tenant,
    /// A tenant that is suspended and activated.
    Suspension,
    /// A named definition.
    Workflow,
    /// A run that waits until it is cancelled.
    Run,
    /// A join token.
    Token,
    /// A node registered over HTTP.
    HttpNode,
}

/// An object that clients share.
#[derive(Debug)]
pub struct SharedObject {
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub path: String,
    /// What it was at first.
    initial: Object,
    /// How many operations were begun.
    pub begun: usize,
    /// Whether somebody has seen that it is no more.
    pub is_over: bool,
    /// What clients saw of it.
    pub history: Vec<Seen<ObjectOp, ObjectAnswer>>,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Tenant, Self::Suspension, Self::Workflow, Self::Run, Self::Token, Self::HttpNode];
}

impl SharedObject {
    /// One that nobody has used yet.
    pub fn new(kind: Kind, path: String, initial: Object) -> Self {
        let (begun, is_over, history) = (0, false, Vec::new());
        Self { kind, path, initial, begun, is_over, history }
    }

    /// Whether further operations of it are looked at.
    pub fn is_in_use(&self) -> bool {
        !self.is_over && self.begun < OPS_MAX
    }

    /// Checks what clients saw of it.
    ///
    /// # Errors
    /// When no order explains it.
    pub fn check(&self) -> Checked {
        let what = format!("{:?} {}", self.kind, self.path);
        linear::check(&what, self.initial.clone(), &self.history)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn seen(
        client: &str,
        op: ObjectOp,
        from: u64,
        to: Option<(u64, ObjectAnswer)>,
    ) -> Seen<ObjectOp, ObjectAnswer> {
        let at = Duration::from_millis;
        Seen {
            client: client.into(),
            from: at(from),
            answer: to.map(|(to, ret)| (at(to), ret)),
            op,
        }
    }

    fn check(is_made_by_writes: bool, history: &[Seen<ObjectOp, ObjectAnswer>]) -> bool {
        let object = Object { value: Some("a".into()), is_made_by_writes };
        linear::check("it", object, history).is_ok()
    }

    #[test]
    fn a_write_that_was_seen_and_then_refused_is_noticed() {
        let write = ObjectOp::Write("b".into());
        let history = [
            seen("1", write, 0, Some((9, ObjectAnswer::Absent))),
            seen("2", ObjectOp::Read, 2, Some((3, ObjectAnswer::Says("b".into())))),
            seen("3", ObjectOp::Remove, 4, Some((5, ObjectAnswer::Done))),
        ];
        assert!(!check(false, &history));
        let mut told = history.clone();
        told[0].answer = Some((Duration::from_millis(9), ObjectAnswer::Done));
        assert!(check(false, &told));
    }

    #[test]
    fn what_was_removed_stays_away_unless_writes_make_it() {
        let history = [
            seen("1", ObjectOp::Remove, 0, None),
            seen("2", ObjectOp::Read, 1, Some((2, ObjectAnswer::Absent))),
            seen("2", ObjectOp::Write("c".into()), 3, Some((4, ObjectAnswer::Done))),
            seen("2", ObjectOp::Read, 5, Some((6, ObjectAnswer::Says("c".into())))),
        ];
        assert!(check(true, &history));
        assert!(!check(false, &history));
    }
}
