//! Calls between members.

use super::*;

#[tokio::test]
async fn a_call_is_answered_and_the_caller_is_known_by_its_certificate() {
    let (one, two) = Cluster::new(1).connected_pair().await;
    assert_eq!(one.call(2, b"hello").await.unwrap(), b"hello");
    assert_eq!(one.call(2, b"").await.unwrap(), b"");
    assert_eq!(two.call(1, b"back").await.unwrap(), b"back");
    assert_eq!(one.service.calls_so_far(), [(2, Service::Node, b"back".to_vec())]);
    assert_eq!(two.service.calls_so_far()[0], (1, Service::Node, b"hello".to_vec()));
}

#[tokio::test]
async fn a_service_may_decline() {
    let (one, _two) = Cluster::new(2).connected_pair().await;
    let declined = PeerError::Declined { to: RaftId(2), why: "not today".to_owned() };
    assert_eq!(one.call(2, b"no").await.unwrap_err(), declined);
}

#[tokio::test]
async fn only_members_are_called() {
    let (one, _two) = Cluster::new(3).pair();
    assert!(unreachable(&one.call(9, b"hello").await, "no member"));
}

#[tokio::test]
async fn the_longest_messages_pass_and_longer_ones_are_not_sent() {
    let (one, two) = Cluster::new(4).connected_pair().await;
    let longest = vec![3; PEER_MESSAGE_BYTES_MAX];
    assert_eq!(one.call(2, &longest).await.unwrap(), longest);
    assert_eq!(one.call(2, b"long").await.unwrap().len(), PEER_MESSAGE_BYTES_MAX);
    let longer = one.call(2, b"longer").await;
    assert!(lost(&longer), "it was done, and what came of it is not told");
    two.service.calls_so_far();
    let longer = vec![3; PEER_MESSAGE_BYTES_MAX + 1];
    assert!(unreachable(&one.call(2, &longer).await, "longer than"));
    assert_eq!(two.service.calls_so_far().len(), 0);
}

#[tokio::test]
async fn a_call_without_an_answer_is_lost_at_its_deadline() {
    let (one, two) = Cluster::new(5).connected_pair().await;
    let patience = Duration::from_millis(100);
    assert!(lost(&one.call_for(2, Service::Node, b"wait", patience).await));
    two.service.until_under_way(0).await;
}

/// Files of many gigabytes take their time to come to their place, and whoever sent them waits.
#[tokio::test]
async fn a_call_about_a_snapshot_may_take_longer_than_others() {
    let (one, _two) = Cluster::new(14).connected_pair().await;
    let left = async |service: Service| -> u64 {
        let told = one.call_for(2, service, b"left", 10 * PEER_CALL_MAX).await.unwrap();
        String::from_utf8(told).unwrap().parse().unwrap()
    };
    assert!(left(Service::Node).await <= PEER_CALL_MAX.as_secs());
    assert!(left(Service::Snapshot).await > 9 * PEER_CALL_MAX.as_secs());
}

#[tokio::test]
async fn a_call_is_not_served_for_a_caller_that_has_gone() {
    let (one, two) = Cluster::new(6).connected_pair().await;
    let call = one.waiting_call(&two).await;
    drop(call);
    two.service.until_under_way(0).await;
    assert_eq!(one.call(2, b"hello").await.unwrap(), b"hello", "on the same connection");
}

#[tokio::test]
async fn callers_share_one_attempt_to_connect() {
    let (one, two) = Cluster::new(7).pair();
    let calls: Vec<_> = (0..50)
        .map(|number: u8| {
            let quic = Arc::clone(&one.quic);
            tokio::spawn(async move {
                quic.call(RaftId(2), Service::Node, vec![number], Instant::now() + PATIENCE).await
            })
        })
        .collect();
    for (number, call) in (0..50).zip(calls) {
        assert_eq!(call.await.unwrap().unwrap(), [number]);
    }
    assert_eq!(two.quic.dialler.endpoint.stats().accepted_handshakes, 1);
}

#[tokio::test]
async fn calls_under_way_are_bounded_lane_by_lane() {
    let (one, two) = Cluster::new(8).connected_pair().await;
    let full = async |service: Service, bound: usize| {
        let calls: Vec<_> = (0..bound)
            .map(|_| {
                let quic = Arc::clone(&one.quic);
                let deadline = Instant::now() + PATIENCE;
                tokio::spawn(async move {
                    quic.call(RaftId(2), service, b"wait".to_vec(), deadline).await
                })
            })
            .collect();
        calls
    };
    let bulk = full(Service::Snapshot, dial::members::BULK_CALLS_MAX).await;
    two.service.until_under_way(dial::members::BULK_CALLS_MAX).await;
    let refused = one.call_for(2, Service::Snapshot, b"one more", PATIENCE).await;
    assert!(unreachable(&refused, "too many calls under way"));
    let control = full(Service::Ping, dial::members::CONTROL_CALLS_MAX).await;
    two.service
        .until_under_way(dial::members::BULK_CALLS_MAX + dial::members::CONTROL_CALLS_MAX)
        .await;
    let refused = one.call_for(2, Service::Ping, b"one more", PATIENCE).await;
    assert!(unreachable(&refused, "too many calls under way"));
    one.call(2, b"another lane").await.unwrap();
    two.service.go.send_replace(true);
    for call in bulk.into_iter().chain(control) {
        call.await.unwrap().unwrap();
    }
}

/// A transfer that goes on for ever, many calls at a time, while small calls are made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_transfers_do_not_hold_up_small_calls() {
    let (one, _two) = Cluster::new(9).connected_pair().await;
    let stop = watch::Sender::new(false);
    let transfers: Vec<_> = (0..4)
        .map(|_| {
            let (quic, mut stop) = (Arc::clone(&one.quic), stop.subscribe());
            tokio::spawn(async move {
                let mut done = 0_u32;
                while !*stop.borrow_and_update() {
                    let request = vec![1; PEER_MESSAGE_BYTES_MAX];
                    let deadline = Instant::now() + 6 * PATIENCE;
                    quic.call(RaftId(2), Service::Snapshot, request, deadline).await.unwrap();
                    done += 1;
                }
                done
            })
        })
        .collect();
    for _ in 0..100 {
        one.call_for(2, Service::Ping, b"ping", PATIENCE).await.unwrap();
    }
    assert!(transfers.iter().all(|transfer| !transfer.is_finished()), "they were under way");
    stop.send_replace(true);
    let mut done = 0;
    for transfer in transfers {
        done += transfer.await.unwrap();
    }
    assert!(done > 0);
}

#[tokio::test]
async fn a_member_that_is_not_there_is_tried_now_and_then() {
    /// The pause after an attempt is so short that a busy machine may miss it, but not each time.
    const CALLS_MAX: usize = 5;
    let cluster = Cluster::new(10);
    let (one, two) = cluster.pair();
    let addr = two.addr();
    let Node { name, identity, quic, .. } = two;
    quic.close().await;
    drop(quic);
    assert!(unreachable(&one.call(2, b"hello").await, "no answer"));
    let mut calls = 0;
    loop {
        let soon_after = Instant::now();
        assert!(unreachable(&one.call(2, b"hello").await, "no answer"));
        if soon_after.elapsed() < Duration::from_millis(dial::ATTEMPT_MS_MAX) {
            break;
        }
        calls += 1;
        assert!(calls < CALLS_MAX, "it was asked for each call");
    }

    // Its first sign of life ends the pause.
    let two = cluster.start(name, identity, addr);
    two.knows(&[&one]);
    two.call_until_answered(1).await;
    one.call_until_answered(2).await;
}

#[tokio::test]
async fn a_member_that_starts_again_at_its_address_is_called_again() {
    let cluster = Cluster::new(11);
    let (one, two) = cluster.connected_pair().await;
    let addr = two.addr();
    let Node { name, identity, quic, .. } = two;
    quic.close().await;
    drop(quic);
    let two = cluster.start(name, identity, free(addr).await);
    two.knows(&[&one]);
    one.call_until_answered(2).await;
}

/// Nobody may be left to tell the others where it is: it is found by its own calls.
#[tokio::test]
async fn a_member_that_starts_elsewhere_is_called_where_it_calls_from() {
    let cluster = Cluster::new(13);
    let (one, two) = cluster.connected_pair().await;
    let Node { name, identity, quic, .. } = two;
    quic.close().await;
    drop(quic);
    let anywhere = ([127, 0, 0, 1], 0).into();
    let moved = cluster.start(name, identity, anywhere);
    moved.knows(&[&one]);
    moved.call_until_answered(1).await;
    one.call_until_answered(2).await;
    assert!(!moved.service.calls_so_far().is_empty());
}

#[tokio::test]
async fn who_stands_at_a_members_address_has_to_be_that_member() {
    let cluster = Cluster::new(12);
    let (one, two, three) = (cluster.node(1), cluster.node(2), cluster.node(3));
    three.knows(&[&one]);
    one.quic.set_members(vec![Peer { addr: three.peer().addr, ..two.peer() }], RaftId(0));
    assert!(unreachable(&one.call(2, b"hello").await, "certificate"));
    assert_eq!(three.service.calls_so_far(), []);
}

/// Waits until a socket that was let go is free.
async fn free(addr: SocketAddr) -> SocketAddr {
    soon(async {
        while RealUdp.bind(addr).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    addr
}

/// It carries what everybody says to the member, whoever asked for it first.
#[tokio::test]
async fn a_connection_does_not_end_with_the_threads_of_who_asked_for_it() {
    let (one, two) = Cluster::new(15).pair();
    let mut clients = tokio::runtime::Builder::new_multi_thread();
    let clients = clients.worker_threads(1).enable_all().build().unwrap();
    let quic = Arc::clone(&one.quic);
    let asked = clients.spawn(async move {
        let ask = || quic.call(RaftId(2), Service::Ping, b"?".to_vec(), Instant::now() + PATIENCE);
        while ask().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    soon(asked).await.unwrap();
    let call = one.waiting_call(&two).await;
    clients.shutdown_background();
    two.service.go.send_replace(true);
    assert_eq!(soon(call).await.unwrap(), b"wait");
}
