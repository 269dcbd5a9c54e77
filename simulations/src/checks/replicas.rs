//! All replicas of a tenant wrote the same log, byte for byte.

use std::collections::BTreeMap;

use serde_json::Value;
use shiioo_actors::domain::voters::TENANT_GROUP_VOTERS;

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

/// Replicas of a tenant. A node beyond them that has its log had a replica once, which moved: what it
/// keeps ends where it was relieved.
pub const REPLICAS: usize = TENANT_GROUP_VOTERS;

/// The log of a tenant on a node: the node, the path, the bytes.
type Copy<'a> = (&'a str, &'a str, &'a [u8]);

/// What all replicas agree on: the events of each tenant, but for those of which only copies are left that
/// no node needs.
///
/// # Errors
/// When a log is not valid, or two replicas differ.
pub fn agreed(
    disks: &[Logs],
    is_left_over: impl Fn(&str) -> bool,
) -> Checked<BTreeMap<String, Vec<Value>>> {
    let mut copies: BTreeMap<&str, Vec<Copy<'_>>> = BTreeMap::new();
    for Logs { node, logs } in disks {
        for (path, bytes) in logs {
            let tenant = path.rsplit('/').nth(1).unwrap_or_default();
            if !is_left_over(tenant) {
                copies.entry(tenant).or_default().push((node, path, bytes));
            }
        }
    }
    let mut agreed = BTreeMap::new();
    for (tenant, mut copies) in copies {
        // The longest first, and those that are alike in the order of the nodes.
        copies.sort_by_key(|(_, _, bytes)| std::cmp::Reverse(bytes.len()));
        let (other, path, expected) = copies[0];
        for (at, (node, path, bytes)) in copies.iter().enumerate() {
            // The last line of one that was relieved may be torn: nobody opens it any more.
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            let is_replica = at < REPLICAS;
            let is_as_it_should = match is_replica {
                true => *bytes == expected,
                false => expected.starts_with(&bytes[..whole]),
            };
            let same = bytes.iter().zip(expected).take_while(|(a, b)| a == b).count();
            ensure!(
                is_as_it_should,
                "{path} on {node} ({} bytes) and on {other} ({} bytes) differ after {same} bytes",
                bytes.len(),
                expected.len()
            );
        }
        agreed.insert(tenant.to_owned(), events::parse(path, expected)?);
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
        assert_eq!(agreed(&same, |_| false).map(|logs| logs["t"].len()), Ok(1));
        for other in ["", "{\"seq\":1}\n{\"seq\":2}\n", "{\"seq\": 1}\n"] {
            assert!(agreed(&[same[0].clone(), disk("b", other)], |_| false).is_err(), "{other}");
        }
        let two = "{\"seq\":1}\n{\"seq\":2}\n";
        let with = |other| {
            let disks =
                ["a", "b", "c", "d"].map(|it| disk(it, if it == "b" { other } else { two }));
            agreed(&disks, |_| false)
        };
        assert!(
            with("{\"seq\":1}\n").is_ok() && with("{\"seq\":1}\n\0").is_ok(),
            "it was relieved"
        );
        assert!(with("{\"seq\":3}\n").is_err(), "it has what nobody else has");
        let left = [disk("a", "{\"seq\":1}\n"), disk("b", "torn")];
        assert!(agreed(&left, |_| false).is_err());
        assert_eq!(agreed(&left, |tenant| tenant == "t").map(|logs| logs.len()), Ok(0));
    }
}
