//! A node whose cluster was recovered by force, and members of the cluster as it was before.

use super::*;
use crate::quic::tls::FormerIdentity;

/// Starts a member of `now` that was a member of `before`, under the same node id and key.
fn recovered(before: &Cluster, now: &Cluster, raft_id: u64) -> Node {
    let (name, identity) = now.identity(raft_id);
    let public = NodeKey::from_der(&identity.key).unwrap().public();
    let former_name = MemberName { cluster: before.authority.cluster(), ..name };
    let former = FormerIdentity {
        ca_cert: before.authority.cert_der().to_vec(),
        cert: before.authority.issue(&Seeded::new(5), public, former_name).unwrap(),
    };
    let identity = TlsIdentity { former: Some(former), ..identity };
    now.start(name, identity, ([127, 0, 0, 1], 0).into())
}

#[tokio::test]
async fn a_member_of_the_former_cluster_is_told_and_refused() {
    let (before, now) = (Cluster::new(40), Cluster::new(41));
    let (one, two) = (recovered(&before, &now, 1), before.node(2));
    // Even where the table of members still has it.
    one.knows(&[&two]);
    two.knows(&[&one]);
    assert!(unreachable(&two.call(1, b"hello").await, "recovered by force"));
    let told = soon(two.quic.recovered_elsewhere()).await;
    let cluster = now.authority.cluster().to_string();
    assert!(told.contains(&cluster) && told.contains("empty data directory"), "{told}");
    assert!(unreachable(&one.call(2, b"hello").await, "certificate"));
    assert_eq!(one.service.calls_so_far(), []);
    assert_eq!(two.service.calls_so_far(), []);
}

#[tokio::test]
async fn members_of_the_recovered_cluster_talk() {
    let (before, now) = (Cluster::new(42), Cluster::new(43));
    let (one, two) = (recovered(&before, &now, 1), now.node(2));
    one.knows(&[&two]);
    two.knows(&[&one]);
    one.call_until_answered(2).await;
    two.call_until_answered(1).await;
    let told = timeout(Duration::from_millis(1), one.quic.recovered_elsewhere());
    assert!(told.await.is_err(), "nobody has told it anything");
}
