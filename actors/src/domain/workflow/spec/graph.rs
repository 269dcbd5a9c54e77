//! Which steps come before which.

use std::collections::BTreeMap;

use crate::domain::workflow::Workflow;
use crate::domain::workflow::template::Steps;

/// The graph of a workflow without cycles.
pub(super) struct Graph<'w> {
    index: BTreeMap<&'w str, usize>,
    /// Which steps come before each, directly or not: a bit each.
    before: Vec<Vec<u64>>,
    /// Ids that cannot be written as one name in a template.
    unquoted: Vec<&'w str>,
}

impl<'w> Graph<'w> {
    /// Sorts the steps as Kahn does; an error is a step that can never start.
    pub(super) fn of(workflow: &'w Workflow) -> Result<Self, &'w str> {
        let steps = &workflow.steps;
        let mut missing: Vec<usize> = steps.iter().map(|step| step.needs.len()).collect();
        let mut dependents = vec![Vec::new(); steps.len()];
        for (index, step) in steps.iter().enumerate() {
            for need in &step.needs {
                dependents[usize::from(*need)].push(index);
            }
        }
        let mut before = vec![vec![0_u64; steps.len().div_ceil(64)]; steps.len()];
        let mut ready: Vec<usize> = (0..steps.len()).filter(|index| missing[*index] == 0).collect();
        while let Some(done) = ready.pop() {
            let mut through = before[done].clone();
            through[done / 64] |= 1 << (done % 64);
            for dependent in &dependents[done] {
                for (bits, more) in before[*dependent].iter_mut().zip(&through) {
                    *bits |= more;
                }
                missing[*dependent] -= 1;
                if missing[*dependent] == 0 {
                    ready.push(*dependent);
                }
            }
        }
        if let Some(index) = missing.iter().position(|count| *count > 0) {
            return Err(&steps[index].id);
        }
        let unquoted = steps.iter().map(|step| step.id.as_str()).filter(|id| !is_name(id));
        let index = steps.iter().enumerate().map(|(index, step)| (step.id.as_str(), index));
        Ok(Self { index: index.collect(), before, unquoted: unquoted.collect() })
    }

    /// What the templates of a step may name.
    pub(super) fn before(&self, step: usize) -> Before<'_> {
        Before { graph: self, step }
    }
}

/// A step, seen by its templates.
pub(super) struct Before<'g> {
    graph: &'g Graph<'g>,
    step: usize,
}

impl Steps for Before<'_> {
    fn exists(&self, id: &str) -> bool {
        self.graph.index.contains_key(id)
    }

    fn comes_before(&self, id: &str) -> bool {
        let bits = &self.graph.before[self.step];
        self.graph.index.get(id).is_some_and(|index| bits[index / 64] & (1 << (index % 64)) != 0)
    }

    fn unquoted(&self, code: &str) -> Option<&str> {
        let ids = self.graph.unquoted.iter().filter(|id| code.starts_with(**id));
        ids.max_by_key(|id| id.len()).copied()
    }
}

fn is_name(id: &str) -> bool {
    let first = id.bytes().next();
    first.is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
