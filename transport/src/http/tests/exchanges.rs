//! Requests, answers, kept connections and redirects.

use super::super::connection::RESPONSE_BODY_BYTES_MAX;
use super::*;

#[tokio::test]
async fn requests_to_one_place_share_a_connection() {
    let server = Server::plain(&[&[OK, OK]]).await;
    let client = client();
    let answer = client.call(get(server.url("/a?b=c"))).await.unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"hi"[..]));
    assert!(answer.headers.contains(&("x-got".into(), "It".into())));
    assert_eq!(client.pool.usable(), 1);

    let post = HttpRequest {
        method: "POST".into(),
        headers: vec![("X-A".into(), "b".into())],
        body: b"{}".to_vec(),
        ..get(server.url("/p"))
    };
    client.call(post).await.unwrap();
    let heard = server.heard();
    assert!(heard[0].starts_with("GET /a?b=c HTTP/1.1\r\n"), "{}", heard[0]);
    assert!(heard[0].contains(&format!("\r\nhost: 127.0.0.1:{}\r\n", server.port)));
    assert!(!heard[0].contains("content-length"));
    assert!(
        heard[1].contains("\r\nx-a: b\r\n") && heard[1].ends_with("\r\n\r\n{}"),
        "{}",
        heard[1]
    );
}

#[tokio::test]
async fn an_empty_post_says_so_and_a_head_has_no_body() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n";
    let server = Server::plain(&[&[OK, head, OK]]).await;
    let client = client();
    client.call(HttpRequest { method: "POST".into(), ..get(server.url("/")) }).await.unwrap();
    let answer = client.call(HttpRequest { method: "HEAD".into(), ..get(server.url("/")) });
    assert_eq!(answer.await.unwrap().body, b"");
    client.call(get(server.url("/"))).await.unwrap();
    assert!(server.heard()[0].contains("\r\ncontent-length: 0\r\n"));
}

#[tokio::test]
async fn a_closed_idle_connection_is_replaced() {
    let server = Server::plain(&[&[OK], &[OK]]).await;
    let client = client();
    client.call(get(server.url("/1"))).await.unwrap();
    until_no_connection_is_usable(&client).await;
    client.call(get(server.url("/2"))).await.unwrap();
    assert_eq!(server.heard().len(), 2);
}

#[tokio::test]
async fn a_kept_connection_that_closes_without_an_answer_is_replaced() {
    for method in ["GET", "HEAD", "PUT", "DELETE"] {
        let server = Server::plain(&[&[OK, ""], &[OK]]).await;
        let client = client();
        client.call(get(server.url("/1"))).await.unwrap();
        let request = HttpRequest { method: method.into(), ..get(server.url("/2")) };
        assert_eq!(client.call(request).await.unwrap().status, 200, "{method}");
        assert_eq!(server.heard().len(), 3, "{method}");
    }
}

#[tokio::test]
async fn a_request_that_may_have_been_processed_is_not_sent_twice() {
    // The method, what the service says on a kept connection before it closes, and on a fresh one.
    for (method, kept, fresh) in [
        ("POST", Some(""), OK),
        ("PATCH", Some(""), OK),
        ("GET", Some("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh"), OK),
        ("GET", Some("HTT"), OK),
        ("GET", None, ""),
    ] {
        let kept = kept.map(|text| [OK, text]);
        let fresh = [fresh];
        let connections: Vec<&[&str]> =
            kept.iter().map(<[_; 2]>::as_slice).chain([&fresh[..], &[OK]]).collect();
        let server = Server::plain(&connections).await;
        let client = client();
        if kept.is_some() {
            client.call(get(server.url("/1"))).await.unwrap();
        }
        let request = HttpRequest { method: method.into(), ..get(server.url("/2")) };
        let reason = failed(client.call(request).await);
        assert!(reason.contains("closed") || reason.contains("end of file"), "{reason}");
        assert_eq!(server.heard().len(), 1 + kept.iter().len(), "{method}");
    }
}

#[tokio::test]
async fn a_connection_that_is_to_be_closed_is_not_kept() {
    let close = "HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\nuntil the end";
    let server = Server::plain(&[&[close]]).await;
    let client = client();
    let answer = client.call(get(server.url("/"))).await.unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (404, &b"until the end"[..]));
    assert_eq!(client.pool.usable(), 0);
}

#[tokio::test]
async fn redirects_are_followed_a_few_times() {
    let there = "HTTP/1.1 302 Found\r\nLocation: next\r\nContent-Length: 0\r\n\r\n";
    let server = Server::plain(&[&[there, there, OK], &[there; 7]]).await;
    let client = client();
    let post = HttpRequest {
        method: "POST".into(),
        body: b"{}".to_vec(),
        ..get(server.url("/deep/start?secret=sesame"))
    };
    assert_eq!(client.call(post).await.unwrap().status, 200);
    let lines: Vec<String> =
        server.heard().iter().map(|it| it.lines().next().unwrap().to_owned()).collect();
    let next = "GET /deep/next HTTP/1.1";
    assert_eq!(lines, ["POST /deep/start?secret=sesame HTTP/1.1", next, next]);

    until_no_connection_is_usable(&client).await;
    let reason = unsendable(client.call(get(server.url("/?sesame"))).await);
    assert_eq!(reason, "redirected more than 5 times");
    assert_eq!(server.heard().len(), 3 + 6);
}

#[tokio::test]
async fn redirects_stay_within_a_scheme() {
    let away = "HTTP/1.1 307 Temporary Redirect\r\nLocation: https://127.0.0.1/sesame\r\n\
                Content-Length: 0\r\n\r\n";
    let server = Server::plain(&[&[away]]).await;
    let reason = unsendable(client().call(get(server.url("/"))).await);
    assert!(reason.contains("from http to https") && !reason.contains("sesame"), "{reason}");
}

#[tokio::test]
async fn answers_are_bounded() {
    let announced =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", RESPONSE_BODY_BYTES_MAX + 1);
    let chunked = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{}\r\n0\r\n\r\n",
        RESPONSE_BODY_BYTES_MAX + 1,
        "x".repeat(RESPONSE_BODY_BYTES_MAX + 1)
    );
    let just_fits = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {RESPONSE_BODY_BYTES_MAX}\r\n\r\n{}",
        "x".repeat(RESPONSE_BODY_BYTES_MAX)
    );
    let wide_head = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(70_000));
    let long_head = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(101));
    let answers = [announced, chunked, wide_head, long_head, just_fits];
    let server = Server::start(answers.map(|answer| vec![answer]).to_vec(), None).await;
    let client = client();
    for what in ["body of the answer", "body of the answer", "head of", "head of"] {
        let reason = failed(client.call(get(server.url("/"))).await);
        assert!(reason.contains(what) && reason.contains("larger than"), "{reason}");
        assert_eq!(client.pool.usable(), 0);
    }
    let answer = client.call(get(server.url("/"))).await.unwrap();
    assert_eq!(answer.body.len(), RESPONSE_BODY_BYTES_MAX);
}

#[tokio::test]
async fn a_dropped_call_closes_its_connection() {
    let listener = RealTcp.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let client = client();
    let mut call = client.call(get(url));
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        hear(&mut stream).await.unwrap();
        stream
    };
    let mut stream = tokio::select! {
        _ = &mut call => panic!("nobody answered"),
        stream = server => stream,
    };
    drop(call);
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "end of the stream");
    assert_eq!(client.pool.usable(), 0);
}
