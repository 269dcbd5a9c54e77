//! What clients saw of one thing is what they would see if one after the other had used it.
//!
//! The search for such an order is exponential in what overlaps, so a history is kept short:
//! [`OPS_MAX`] operations of one thing.
//!
//! Linearizability: M. Herlihy, J. Wing, "Linearizability: a correctness condition for concurrent
//! objects" (1990). The search is stateright's.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use outside::ensure;
use stateright::semantics::{ConsistencyTester as _, LinearizabilityTester, SequentialSpec};

use super::{Checked, Violation};

/// Operations of one thing that are looked at.
pub const OPS_MAX: usize = 48;

/// One operation, as the client that asked for it saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen<Op, Ret> {
    /// Who. A client has one operation under way, but for those that it gave up.
    pub client: String,
    /// When it was first asked for.
    pub from: Duration,
    /// When and how it was answered; none where nobody knows whether it took effect.
    pub answer: Option<(Duration, Ret)>,
    /// What.
    pub op: Op,
}

/// Checks the operations of one thing that was `init` at first.
///
/// # Errors
/// When there is no order that explains them.
pub fn check<S>(what: &str, init: S, history: &[Seen<S::Op, S::Ret>]) -> Checked
where
    S: SequentialSpec + Clone,
    S::Op: Clone + Debug,
    S::Ret: Clone + Debug,
{
    let mut tester = LinearizabilityTester::new(init);
    let mut given_up: BTreeMap<&str, u64> = BTreeMap::new();
    for (seen, thread, is_end) in moments(history, &mut given_up) {
        let took = match &seen.answer {
            Some((_, answer)) if is_end => tester.on_return(thread, answer.clone()),
            _ => tester.on_invoke(thread, seen.op.clone()),
        };
        took.map_err(|error| Violation(format!("the history of {what} is none: {error}")))?;
    }
    ensure!(
        tester.is_consistent(),
        "what clients saw of {what} has no order that explains it:{}",
        history.iter().map(line).collect::<String>()
    );
    Ok(())
}

/// An operation as a line of its own.
fn line<Op: Debug, Ret: Debug>(seen: &Seen<Op, Ret>) -> String {
    let Seen { client, from, answer, op } = seen;
    match answer {
        Some((at, answer)) => format!("\n  {from:?} to {at:?} {client}: {op:?} -> {answer:?}"),
        None => format!("\n  {from:?} {client}: {op:?} -> unknown"),
    }
}

/// A thread of the search: a client, and how many operations it had given up before.
type Thread<'a> = (&'a str, u64);

/// Beginnings and ends in the order of time. At one moment beginnings come first: what touches is
/// taken to overlap.
fn moments<'a, Op, Ret>(
    history: &'a [Seen<Op, Ret>],
    given_up: &mut BTreeMap<&'a str, u64>,
) -> Vec<(&'a Seen<Op, Ret>, Thread<'a>, bool)> {
    let mut moments = Vec::new();
    let mut ordered: Vec<&Seen<Op, Ret>> = history.iter().collect();
    ordered.sort_by_key(|seen| seen.from);
    for seen in ordered {
        let generation = given_up.entry(seen.client.as_str()).or_default();
        let thread = (seen.client.as_str(), *generation);
        moments.push((seen.from, false, seen, thread));
        match &seen.answer {
            Some((at, _)) => moments.push((*at, true, seen, thread)),
            None => *generation += 1,
        }
    }
    moments.sort_by_key(|(at, is_end, ..)| (*at, *is_end));
    // A client that asks again at the moment of an answer has had that answer.
    let mut sorted: Vec<(&Seen<Op, Ret>, Thread<'_>, bool)> = Vec::new();
    let mut open: BTreeMap<Thread<'_>, bool> = BTreeMap::new();
    let mut early: Vec<(&Seen<Op, Ret>, Thread<'_>)> = Vec::new();
    for (_, is_end, seen, thread) in moments {
        if is_end {
            open.insert(thread, false);
            sorted.push((seen, thread, true));
            if let Some(at) = early.iter().position(|(_, waiting)| *waiting == thread) {
                let (seen, thread) = early.remove(at);
                open.insert(thread, true);
                sorted.push((seen, thread, false));
            }
        } else if open.get(&thread) == Some(&true) {
            early.push((seen, thread));
        } else {
            open.insert(thread, true);
            sorted.push((seen, thread, false));
        }
    }
    sorted
}

#[cfg(test)]
mod tests {
    use stateright::semantics::register::{Register, RegisterOp, RegisterRet};

    use super::*;

    type SeenHere = Seen<RegisterOp<u8>, RegisterRet<u8>>;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn write(client: &str, value: u8, from: u64, to: Option<u64>) -> SeenHere {
        let answer = to.map(|to| (at(to), RegisterRet::WriteOk));
        Seen { client: client.into(), from: at(from), answer, op: RegisterOp::Write(value) }
    }

    fn read(client: &str, value: u8, from: u64, to: u64) -> SeenHere {
        let answer = Some((at(to), RegisterRet::ReadOk(value)));
        Seen { client: client.into(), from: at(from), answer, op: RegisterOp::Read }
    }

    #[test]
    fn an_order_is_found() {
        let history = [
            write("a", 1, 0, Some(10)),
            write("b", 2, 5, None),
            read("a", 1, 10, 20),
            read("a", 2, 20, 30),
            write("b", 3, 25, Some(40)),
            read("a", 3, 30, 35),
        ];
        assert_eq!(check("x", Register(0), &history), Ok(()));
    }

    #[test]
    fn what_goes_back_is_noticed() {
        let back = [write("a", 1, 0, Some(10)), read("b", 0, 11, 12)];
        assert!(check("x", Register(0), &back).is_err());
        let twice = [write("a", 1, 0, None), read("b", 1, 11, 12), read("c", 0, 13, 14)];
        assert!(check("x", Register(0), &twice).is_err());
    }
}
