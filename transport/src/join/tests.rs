//! Joiners over the loopback, against whole nodes.

use super::*;
use crate::quic::TlsIdentity;
use crate::quic::tests::Cluster;
use crate::sockets::tcp::RealTcp;
use crate::sockets::udp::RealUdp;
use crate::testing::seams;

async fn ask_from_loopback(
    addr: &str,
    expect: CaExpectation,
    request: impl FnOnce(&JoinBinding) -> Vec<u8> + Send,
) -> Result<JoinAnswer, JoinError> {
    let (tcp, seams) = (Arc::new(RealTcp) as Arc<dyn Tcp>, seams(8));
    let bind = ([127, 0, 0, 1], 0).into();
    let joiner = JoinSeams { udp: &RealUdp, bind, tcp: &tcp, seams: &seams, plain_packets: true };
    ask(joiner, addr, expect, request, Instant::now() + Duration::from_secs(5)).await
}

#[tokio::test]
async fn a_joiner_is_answered_and_both_ends_have_the_same_binding() {
    let cluster = Cluster::new(40);
    let one = cluster.node(1);
    let port = one.addr().port();
    let expected = cluster.authority.fingerprint();
    for expect in [CaExpectation::Fingerprint(expected), CaExpectation::Any] {
        let mut seen = None;
        let addr = format!("localhost:{port}");
        let answer = ask_from_loopback(&addr, expect, |binding| {
            seen = Some(*binding);
            b"abc".to_vec()
        });
        let answer = answer.await.unwrap();
        assert_eq!((answer.reply.as_slice(), answer.remote), (b"cba".as_slice(), one.addr()));
        assert_eq!(answer.ca_cert, cluster.authority.cert_der());
        let seen = seen.unwrap();
        let joiner = *one.join.0.lock().last().unwrap();
        assert_eq!((seen.binding, seen.authority), (joiner.binding, expected));
    }
    let joiners = one.join.0.lock();
    assert_ne!(joiners[0].binding, joiners[1].binding, "each connection has its own");
}

#[tokio::test]
async fn a_joiner_says_nothing_to_another_cluster() {
    let (cluster, other) = (Cluster::new(41), Cluster::new(42));
    let one = cluster.node(1);
    let expected = other.authority.fingerprint();
    let (addr, expect) = (one.addr().to_string(), CaExpectation::Fingerprint(expected));
    let asked =
        ask_from_loopback(&addr, expect, |_| unreachable!("nothing is made to be said")).await;
    let found = cluster.authority.fingerprint();
    assert_eq!(asked.unwrap_err(), JoinError::WrongAuthority { expected, found });
    assert!(one.join.0.lock().is_empty());
}

/// The authority's certificate is no secret: showing it proves nothing.
#[tokio::test]
async fn showing_the_expected_authority_is_not_enough() {
    let (cluster, other) = (Cluster::new(43), Cluster::new(44));
    let (name, theirs) = other.identity(1);
    let ca_cert = cluster.authority.cert_der().to_vec();
    let forger = other.start(name, TlsIdentity { ca_cert, ..theirs }, ([127, 0, 0, 1], 0).into());
    let expect = CaExpectation::Fingerprint(cluster.authority.fingerprint());
    let asked =
        ask_from_loopback(&forger.addr().to_string(), expect, |_| unreachable!("nothing is said"))
            .await;
    assert!(matches!(asked, Err(JoinError::Unreachable { .. })), "{asked:?}");
}

#[tokio::test]
async fn a_cluster_may_decline_and_may_not_be_there() {
    let one = Cluster::new(45).node(1);
    let addr = one.addr().to_string();
    let declined = ask_from_loopback(&addr, CaExpectation::Any, |_| b"no".to_vec()).await;
    assert_eq!(declined.unwrap_err(), JoinError::Declined("no token".to_owned()));
    let long =
        ask_from_loopback(&addr, CaExpectation::Any, |_| vec![0; JOIN_MESSAGE_BYTES_MAX + 1]).await;
    assert!(matches!(long, Err(JoinError::Unreachable { why }) if why.contains("longer")));
    one.quic.close().await;
    let gone = ask_from_loopback(&addr, CaExpectation::Any, |_| Vec::new()).await;
    assert!(matches!(gone, Err(JoinError::Unreachable { .. })), "{gone:?}");
    let nonsense = ask_from_loopback("nonsense", CaExpectation::Any, |_| Vec::new()).await;
    assert!(matches!(nonsense, Err(JoinError::Unreachable { .. })), "{nonsense:?}");
}
