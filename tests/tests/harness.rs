//! The harness itself: what it counts, reads and refuses. A check that sees nothing checks nothing.

use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tests::chaos::model::{Register, Tokens};
use tests::{Client, Counter, Scripted, files, raw};

fn client_of(counter: &Counter) -> Client {
    let url = counter.url("");
    Client::new(url.trim_start_matches("http://").parse().expect("an address"))
}

#[tokio::test]
async fn the_service_counts_by_path_and_key_and_follows_its_script() {
    let counter = Counter::start().await;
    let client = client_of(&counter);
    counter.script("/a", [Scripted::status(503), Scripted::slow(Duration::from_millis(50))]);
    let ask = async |path: &str| client.call("POST", path).header("idempotency-key", "k");
    assert_eq!(ask("/a").await.json(&json!({ "n": 1 })).send().await.status, 503);
    let asked = tokio::time::Instant::now();
    ask("/a").await.send().await.expect(200);
    assert!(asked.elapsed() >= Duration::from_millis(50));
    assert_eq!(ask("/a").await.send().await.expect(200), json!({ "n": 3 }));
    client.get("/b").await.expect(200);
    assert_eq!((counter.count("/a"), counter.count("/b"), counter.count("/c")), (3, 1, 0));
    assert_eq!((counter.count_of_key("k"), counter.count_of_key("other")), (3, 0));
    assert!(!counter.last("/b").0.contains_key("idempotency-key"));
}

#[tokio::test]
async fn a_connection_that_breaks_is_an_unknown_outcome() {
    let counter = Counter::start().await;
    let client = client_of(&counter);
    client.get("/up").await.expect(200);
    drop(counter);
    assert!(client.call("GET", "/up").try_send().await.is_err());
}

#[tokio::test]
async fn raw_answers_are_read_whole() {
    let counter = Counter::start().await;
    let addr = client_of(&counter).addr();
    let answer = raw::send(addr, "GET /x HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(answer.status, Some(200));
    assert!(answer.text.ends_with("{\"n\":1}"), "{}", answer.text);
    assert_eq!(raw::send(addr, "nonsense\r\n\r\n").await.status, Some(400));
}

#[test]
fn a_log_is_valid_to_the_last_byte_or_not() {
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("events.jsonl");
    let read = |text: &str| {
        files::write(&path, text);
        files::events(&path).map(|events| events.map(|events| events.len()))
    };
    assert_eq!(read(""), Ok(Some(0)));
    assert_eq!(read("{\"seq\":1}\n{\"seq\":2}\n"), Ok(Some(2)));
    assert_eq!(read("{\"seq\":1}\n{\"seq\":2"), Ok(None), "half a line");
    assert_eq!(read("{\"seq\":1}\n{\"seq\":2}"), Ok(None), "no end of line");
    assert!(read("{\"seq\":1}\n{\"seq\":3}\n").is_err(), "a gap");
    assert!(read("{\"seq\":2}\n").is_err(), "not from the beginning");
    assert!(read("{\"seq\":1}\n{\"seq\":1}\n").is_err(), "twice");
    assert!(read("{\"seq\":1}\n\0\0\0\n").is_err(), "not JSON");
    assert!(read("{\"seq\":1}\n\n").is_err(), "an empty line");
}

#[test]
#[should_panic(expected = "token 7 was granted after 7")]
fn a_token_that_does_not_grow_is_noticed() {
    let tokens = Tokens::default();
    tokens.granted(7, 3);
    tokens.granted(7, tokens.seen());
}

#[test]
fn a_register_keeps_what_may_be_until_it_is_settled() {
    let mut register = Register::new(1);
    register.doubt(2);
    register.doubt(3);
    assert_eq!(register.possible().copied().collect::<Vec<_>>(), [1, 2, 3]);
    register.settle(3);
    assert_eq!(register.possible().copied().collect::<Vec<_>>(), [3]);
}
