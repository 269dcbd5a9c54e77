//! Shares out the file descriptors of a node's process, so that no use takes what another needs.
//!
//! Invariant: the shares and the reserve together are at most the limit, for every limit from
//! [`DESCRIPTORS_MIN`] on. The reserve belongs to the log, the state of group 0, the sockets, name
//! lookups and what the runtime opens; nothing that a tenant or a client asks for is taken from it.

use std::io;

/// The smallest limit that is shared out. Below it a node is not expected to work.
pub const DESCRIPTORS_MIN: u64 = 64;
/// The part of the limit that is kept for the node itself: one in so many.
const RESERVE_DIVISOR: u64 = 4;
/// Descriptors kept for the node itself where the limit allows it.
const RESERVE_DESCRIPTORS_MIN: u64 = 64;
/// Descriptors kept for the node itself at most.
const RESERVE_DESCRIPTORS_MAX: u64 = 1024;
/// Eighths of the rest that connections of the API get, those that are only refused included.
const API_EIGHTHS: u64 = 3;
/// Eighths of the rest that calls of steps get, their idle connections included.
const STEP_EIGHTHS: u64 = 2;
/// Descriptors of one open tenant: its index and its events.
const STORE_DESCRIPTORS: u64 = 2;

/// Connections of the API at most.
const API_CONNECTIONS_MAX: u64 = 8192;
/// Connections at most that are accepted above the bound, to be answered 503.
const API_REFUSALS_MAX: u64 = 64;
/// Calls of steps under way at most.
const STEP_CALLS_MAX: u64 = 1024;
/// Calls of one tenant's steps under way at most.
const TENANT_STEP_CALLS_MAX: u64 = 64;
/// Idle connections to the services of steps at most.
const IDLE_STEP_CONNECTIONS_MAX: u64 = 256;
/// Tenants whose files are open at most.
const OPEN_STORES_MAX: u64 = 4096;
/// Name lookups under way at most; each takes a thread and a socket.
const LOOKUPS_MAX: u64 = 32;
/// The part of the limit that name lookups get: one in so many. They come out of the reserve.
const LOOKUPS_DIVISOR: u64 = 32;

/// The process has no descriptor left (`EMFILE`): the same number on every Unix.
const EMFILE: i32 = 24;
/// The system has none left (`ENFILE`).
const ENFILE: i32 = 23;

/// Whether an error says that there is no descriptor left: a lack that passes, and says nothing
/// about the file or the host that was to be opened.
pub fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

/// How many of each thing may be open at once. Every number is at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorBudget {
    /// Descriptors that the process may have open, as the operating system says.
    pub limit: u64,
    /// Connections of the API that are served.
    pub api_connections: usize,
    /// Connections beside them, which have sent no request yet, are asked for their health, or answered 503.
    pub api_refusals: usize,
    /// Requests that wait on purpose (`wait_secs`, event streams): below
    /// [`Self::api_connections`], so that short requests always find room.
    pub long_polls: usize,
    /// Calls of `http` steps under way on this node.
    pub step_calls: usize,
    /// Calls of `http` steps under way of one tenant.
    pub tenant_step_calls: usize,
    /// Connections to services that are kept open without a call.
    pub idle_step_connections: usize,
    /// Tenants whose files are open.
    pub open_stores: usize,
    /// Name lookups under way.
    pub lookups: usize,
}

impl DescriptorBudget {
    /// Shares out `limit` descriptors. A small limit shrinks every share; a large one stops at
    /// what each use needs.
    pub const fn of_limit(limit: u64) -> Self {
        let shared = max(limit, DESCRIPTORS_MIN);
        let reserve = min(
            max(shared / RESERVE_DIVISOR, min(RESERVE_DESCRIPTORS_MIN, shared / 2)),
            RESERVE_DESCRIPTORS_MAX,
        );
        let rest = shared - reserve;
        let api = rest * API_EIGHTHS / 8;
        let steps = rest * STEP_EIGHTHS / 8;
        let stores = rest - api - steps;

        let api_refusals = min(max(api / 8, 1), API_REFUSALS_MAX);
        let api_connections = min(api - api_refusals, API_CONNECTIONS_MAX);
        let idle_step_connections = min(max(steps / 4, 1), IDLE_STEP_CONNECTIONS_MAX);
        let step_calls = min(steps - idle_step_connections, STEP_CALLS_MAX);
        Self {
            limit,
            api_connections: count(api_connections),
            api_refusals: count(api_refusals),
            long_polls: count(api_connections - max(api_connections / 4, 1)),
            step_calls: count(step_calls),
            tenant_step_calls: count(min(max(step_calls / 4, 1), TENANT_STEP_CALLS_MAX)),
            idle_step_connections: count(idle_step_connections),
            open_stores: count(min(stores / STORE_DESCRIPTORS, OPEN_STORES_MAX)),
            lookups: count(min(max(shared / LOOKUPS_DIVISOR, 2), LOOKUPS_MAX)),
        }
    }

    /// Descriptors that all shares take together when each is used up, without the reserve.
    pub const fn shared(&self) -> u64 {
        let api = self.api_connections + self.api_refusals;
        let steps = self.step_calls + self.idle_step_connections;
        (api + steps) as u64 + self.open_stores as u64 * STORE_DESCRIPTORS
    }
}

impl Default for DescriptorBudget {
    /// The shares of a process whose limit is no hindrance.
    fn default() -> Self {
        Self::of_limit(1 << 20)
    }
}

const fn min(a: u64, b: u64) -> u64 {
    if a < b { a } else { b }
}

const fn max(a: u64, b: u64) -> u64 {
    if a > b { a } else { b }
}

/// Every share is far below 32 bits.
const fn count(share: u64) -> usize {
    share as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shares(budget: &DescriptorBudget) -> [usize; 8] {
        [
            budget.api_connections,
            budget.api_refusals,
            budget.long_polls,
            budget.step_calls,
            budget.tenant_step_calls,
            budget.idle_step_connections,
            budget.open_stores,
            budget.lookups,
        ]
    }

    #[test]
    fn the_usual_limits_are_shared_out_as_written_down() {
        // limit: connections, refusals, long polls, calls, of one tenant, idle, stores, lookups
        let table = [
            (64, [11, 1, 9, 6, 1, 2, 6, 2]),
            (256, [63, 9, 48, 36, 9, 12, 36, 8]),
            (1024, [252, 36, 189, 144, 36, 48, 144, 32]),
            (4096, [1088, 64, 816, 576, 64, 192, 576, 32]),
            (20_000, [7052, 64, 5289, 1024, 64, 256, 3558, 32]),
            (1 << 20, [8192, 64, 6144, 1024, 64, 256, 4096, 32]),
        ];
        for (limit, expected) in table {
            let budget = DescriptorBudget::of_limit(limit);
            assert_eq!(shares(&budget), expected, "of {limit}");
        }
    }

    #[test]
    fn no_limit_at_all_is_no_overflow() {
        let endless = DescriptorBudget { limit: 0, ..DescriptorBudget::of_limit(u64::MAX / 8) };
        assert_eq!(endless, DescriptorBudget { limit: 0, ..DescriptorBudget::default() });
    }

    proptest! {
        #[test]
        fn shares_leave_a_reserve_and_grow_with_the_limit(limit in 0_u64..100_000) {
            let budget = DescriptorBudget::of_limit(limit);
            prop_assert!(shares(&budget).iter().all(|share| *share > 0), "{budget:?}");
            prop_assert!(budget.long_polls < budget.api_connections);
            prop_assert!(budget.tenant_step_calls <= budget.step_calls);
            if limit >= DESCRIPTORS_MIN {
                let left = limit.checked_sub(budget.shared());
                prop_assert!(left.is_some_and(|left| left >= limit.min(4096) / 4), "{budget:?}");
            }
            let more = shares(&DescriptorBudget::of_limit(limit + 1));
            let grown = shares(&budget).iter().zip(more).all(|(less, more)| *less <= more + 1);
            prop_assert!(grown, "{budget:?}");
        }
    }
}
