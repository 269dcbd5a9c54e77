//! Metrics of the groups on this node, in the text format of Prometheus.

use std::fmt::Write as _;

use shiioo_actors::ports::GroupStatus;
use shiioo_actors::services::tenants::{Quarantined, Registry};

/// Writes gauges of the groups.
pub(super) fn write_groups(groups: &[GroupStatus], text: &mut String) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# TYPE shiioo_group_term gauge");
    for group in groups {
        let _ = writeln!(text, "shiioo_group_term{{group=\"{}\"}} {}", group.group, group.term);
    }
    let _ = writeln!(text, "# TYPE shiioo_group_applied_index gauge");
    for group in groups {
        for replica in &group.replicas {
            let (group, raft_id, applied) = (group.group, replica.raft_id, replica.applied);
            let labels = format!("group=\"{group}\",member=\"{raft_id}\"");
            let _ = writeln!(text, "shiioo_group_applied_index{{{labels}}} {applied}");
        }
    }
}

/// Writes what has become of damaged tenants, and gauges of the quarantined ones, without a label for each: their number is not bounded.
/// `/readyz` names them.
pub(super) fn write_tenants(registry: &Registry, quarantined: &[Quarantined], text: &mut String) {
    let kept: u64 = quarantined.iter().map(|tenant| tenant.log_bytes_kept).sum();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# TYPE shiioo_tenants_quarantined gauge");
    let _ = writeln!(text, "shiioo_tenants_quarantined {}", quarantined.len());
    let _ = writeln!(text, "# TYPE shiioo_quarantined_log_bytes gauge");
    let _ = writeln!(text, "shiioo_quarantined_log_bytes {kept}");
    let _ = writeln!(text, "# TYPE shiioo_tenants_rebuilt_total counter");
    let _ = writeln!(text, "shiioo_tenants_rebuilt_total {}", registry.rebuilt());
    let _ = writeln!(text, "# TYPE shiioo_tenant_scrubs_total counter");
    let _ = writeln!(text, "shiioo_tenant_scrubs_total {}", registry.scrubs());
    let (compared, differing) = registry.comparisons();
    let _ = writeln!(text, "# TYPE shiioo_tenant_comparisons_total counter");
    let _ = writeln!(text, "shiioo_tenant_comparisons_total {compared}");
    let _ = writeln!(text, "# TYPE shiioo_replicas_differ_total counter");
    let _ = writeln!(text, "shiioo_replicas_differ_total {differing}");
}
