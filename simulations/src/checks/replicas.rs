//! All replicas of a tenant wrote the same log, byte for byte.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Checked, events};
use crate::ensure;

/// The logs of tenants on the disk of a node, with their paths.
#[derive(Debug, Clone)]
pub struct Logs {
    /// The node.
    pub node: String,
    /// Paths and contents.
    pub logs: Vec<(String, Vec<u8>)>,
}

/// What all replicas agree on: the events of each tenant.
///
/// # Errors
/// When a log is not valid, or two replicas differ.
pub fn agreed(disks: &[Logs]) -> Checked<BTreeMap<String, Vec<Value>>> {
    let mut agreed: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut first: BTreeMap<&str, (&str, &[u8])> = BTreeMap::new();
    for Logs { node, logs } in disks {
        for (path, bytes) in logs {
            let tenant = path.rsplit('/').nth(1).unwrap_or_default();
            if let Some((other, expected)) = first.get(tenant) {
                let same = bytes.iter().zip(*expected).take_while(|(a, b)| a == b).count();
                ensure!(
                    bytes == expected,
                    "{path} on {node} ({} bytes) and on {other} ({} bytes) differ after {same} \
                     bytes",
                    bytes.len(),
                    expected.len()
                );
                continue;
            }
            first.insert(tenant, (node, bytes));
            agreed.insert(tenant.to_owned(), events::parse(path, bytes)?);
        }
    }
    Ok(agreed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(node: &str, log: &str) -> Logs {
        Logs { node: node.into(), logs: vec![("tenants/t/events.jsonl".into(), log.into())] }
    }

    #[test]
    fn replicas_that_differ_are_noticed() {
        let same = [disk("a", "{\"seq\":1}\n"), disk("b", "{\"seq\":1}\n")];
        assert_eq!(agreed(&same).map(|logs| logs["t"].len()), Ok(1));
        for other in ["", "{\"seq\":1}\n{\"seq\":2}\n", "{\"seq\": 1}\n"] {
            assert!(agreed(&[same[0].clone(), disk("b", other)]).is_err(), "{other}");
        }
    }
}
