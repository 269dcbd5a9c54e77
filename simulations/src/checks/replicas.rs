//! All replicas of a tenant wrote the same log, byte for byte.

use std::collections::BTreeMap;

use outside::checks::events;
use outside::ensure;
use serde_json::Value;
use shiioo_actors::domain::voters::TENANT_GROUP_VOTERS;

use super::Checked;

/// The logs of tenants on the disk of a node, with their paths.
#[derive(Debug, Clone)]
pub struct Logs {
    /// The node.
    pub node: String,
    /// Paths and contents.
    pub logs: Vec<(String, Vec<u8>)>,
}

/// The log of a tenant on a node: the node, the path, the bytes.
type Copy<'a> = (&'a str, &'a str, &'a [u8]);

/// What all replicas agree on: the events of each tenant.
///
/// # Errors
/// When a log is not valid, two replicas differ, or there are more than there should be.
pub fn agreed(disks: &[Logs]) -> Checked<BTreeMap<String, Vec<Value>>> {
    let mut copies: BTreeMap<&str, Vec<Copy<'_>>> = BTreeMap::new();
    for Logs { node, logs } in disks {
        for (path, bytes) in logs {
            let tenant = path.rsplit('/').nth(1).unwrap_or_default();
            copies.entry(tenant).or_default().push((node, path, bytes));
        }
    }
    let mut agreed = BTreeMap::new();
    for (tenant, copies) in copies {
        let (other, path, expected) = copies[0];
        let count = copies.len();
        ensure!(count <= TENANT_GROUP_VOTERS, "{count} nodes have files of tenant {tenant}");
        for (node, path, bytes) in copies {
            let (one, first) = (format!("{path} on {node}"), format!("{path} on {other}"));
            events::same((&one, bytes), (&first, expected))?;
        }
        let (events, is_whole) = events::parse(path, expected)?;
        ensure!(is_whole, "{path} ends in half a line");
        agreed.insert(tenant.to_owned(), events);
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

    #[test]
    fn a_node_that_keeps_what_moved_is_noticed() {
        let disks = ["a", "b", "c", "d"].map(|node| disk(node, "{\"seq\":1}\n"));
        assert!(agreed(&disks[..3]).is_ok());
        assert!(agreed(&disks).is_err());
    }
}
