//! Queues and caches are bounded: a node under load and faults does not grow without end.

use outside::ensure;

use super::Checked;

/// Heap that a run may use for each node, its simulated disk and what the checks keep of it
/// included, bytes. Runs of two minutes were seen to use 45 MiB with one node and 18 MiB a node with
/// five.
const NODE_BYTES_MAX: u64 = 96 << 20;

/// Checks the most that a run had on the heap at a time.
///
/// # Errors
/// When that was too much.
pub fn check(nodes: u64, peak_bytes: u64) -> Checked {
    let most = nodes * NODE_BYTES_MAX;
    ensure!(peak_bytes <= most, "{peak_bytes} bytes were on the heap, and {most} is the most");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_without_end_is_noticed() {
        assert_eq!(check(3, 40 << 20), Ok(()));
        assert!(check(3, 400 << 20).is_err());
    }
}
