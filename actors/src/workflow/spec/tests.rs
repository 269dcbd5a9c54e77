//! What is read as a workflow, and what is refused.

use super::*;

fn parse_text(text: &str) -> Result<Workflow, InvalidWorkflow> {
    parse(serde_json::from_str(text).unwrap())
}

#[test]
fn a_graph_is_read_from_both_ways_of_naming_dependencies() {
    let workflow = parse_text(
        r#"{"steps":[{"id":"a","action":{"type":"set","output":1}},
            {"id":"b","action":{"type":"set","output":"{{ input.x }}"},"depends_on":["a"]},
            {"id":"c","action":{"type":"wait","secs":0.5},"timeout_secs":2}],
           "dependencies":{"c":["b","a"]}}"#,
    )
    .unwrap();
    assert_eq!(workflow.steps[1].needs, [0]);
    assert_eq!(workflow.steps[2].needs, [0, 1]);
    assert_eq!(workflow.steps[2].timeout_ms, 2000);
    let json = workflow.json().to_value();
    assert_eq!(json["dependencies"]["c"], serde_json::json!(["a", "b"]));
    let again = parse(serde_json::from_value(json).unwrap()).unwrap();
    assert_eq!(again, workflow);
}

#[test]
fn what_is_wrong_is_named_with_its_step() {
    let set = r#""action":{"type":"set","output":1}"#;
    let cases = [
        (r#"{"steps":[]}"#.to_owned(), None, "1 to 1000 steps"),
        (format!(r#"{{"steps":[{{"id":"a",{set}}},{{"id":"a",{set}}}]}}"#), Some("a"), "twice"),
        (format!(r#"{{"steps":[{{"id":"a",{set},"depends_on":["x"]}}]}}"#), Some("a"), "no step"),
        (
            format!(r#"{{"steps":[{{"id":"a",{set}}}],"dependencies":{{"y":["a"]}}}}"#),
            Some("y"),
            "no step",
        ),
        (format!(r#"{{"steps":[{{"id":"a",{set},"depends_on":["a"]}}]}}"#), Some("a"), "cycle"),
        (
            format!(
                r#"{{"steps":[{{"id":"a",{set},"depends_on":["b"]}},{{"id":"b",{set},"depends_on":["a"]}}]}}"#
            ),
            Some("a"),
            "cycle",
        ),
        (format!(r#"{{"steps":[{{"id":"a",{set},"timeout_secs":0}}]}}"#), Some("a"), "timeout"),
        (r#"{"steps":[{"id":"a","action":{"type":"wait"}}]}"#.to_owned(), Some("a"), "either secs"),
        (
            r#"{"steps":[{"id":"a","action":{"type":"http","method":"GET","url":"ftp://x"}}]}"#
                .to_owned(),
            Some("a"),
            "http://",
        ),
    ];
    for (text, step, message) in cases {
        let error = parse_text(&text).unwrap_err();
        assert_eq!(error.step.as_deref(), step, "{text}");
        assert!(error.message.contains(message), "{text}: {error}");
    }
}
