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
    let action = |action| format!(r#"{{"steps":[{{"id":"a","action":{action}}}]}}"#);
    let many: Vec<_> = (0..1001).map(|n| format!(r#"{{"id":"s{n}",{set}}}"#)).collect();
    let cases = [
        (r#"{"steps":[]}"#.to_owned(), None, "1 to 1000 steps"),
        (format!(r#"{{"steps":[{}]}}"#, many.join(",")), None, "1 to 1000 steps"),
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
        (format!(r#"{{"steps":[{{"id":"",{set}}}]}}"#), Some(""), "1 to 200 characters"),
        (action(r#"{"type":"wait"}"#), Some("a"), "either secs"),
        (action(r#"{"type":"http","method":"GET","url":"ftp://x"}"#), Some("a"), "http://"),
        (action(r#"{"type":"teleport"}"#), Some("a"), "action.type must be"),
        (action(r#"{"type":"script"}"#), Some("a"), "not allowed on this node"),
    ];
    for (text, step, message) in cases {
        let error = parse_text(&text).unwrap_err();
        assert_eq!(error.step.as_deref(), step, "{text}");
        assert!(error.message.contains(message), "{text}: {error}");
    }
}

#[test]
fn numbers_are_bounded_and_mean_what_they_are_called() {
    let step = |fields: &str| {
        parse_text(&format!(
            r#"{{"steps":[{{"id":"a","action":{{"type":"set","output":1}}{fields}}}]}}"#
        ))
    };
    let first = |fields: &str| step(fields).unwrap().steps.remove(0);
    let given = first(r#","timeout_secs":2,"retry_policy":{"max_attempts":5,"backoff_secs":0.25}"#);
    assert_eq!((given.timeout_ms, given.max_attempts, given.backoff_ms), (2_000, 5, 250));
    let left_out = first("");
    assert_eq!(
        (left_out.timeout_ms, left_out.max_attempts, left_out.backoff_ms),
        (300_000, 1, 1_000)
    );
    assert_eq!(
        first(r#","retry_policy":{"max_attempts":1000,"backoff_secs":3600}"#).max_attempts,
        1000
    );
    assert_eq!(first(r#","retry_policy":{"backoff_secs":0}"#).backoff_ms, 0);
    for (fields, said) in [
        (r#","retry_policy":{"max_attempts":0}"#, "max_attempts must be 1 to 1000; it is 0"),
        (r#","retry_policy":{"max_attempts":1001}"#, "it is 1001"),
        (r#","retry_policy":{"backoff_secs":3601}"#, "backoff_secs must be 0 to 3600; it is 3601"),
        (r#","retry_policy":{"backoff_secs":-1}"#, "it is -1"),
        (r#","timeout_secs":0"#, "timeout_secs must be above 0"),
        (r#","timeout_secs":31536001"#, "it is 31536001"),
    ] {
        let error = step(fields).unwrap_err();
        assert!(error.message.contains(said), "{fields}: {error}");
    }
}

#[test]
fn what_is_stored_is_whole_and_read_again_alike() {
    let workflow = parse_text(
        r#"{"steps":[{"id":"a","action":{"type":"wait","secs":1},"timeout_secs":2.0},
            {"id":"b","name":"n","role":"r","action":{"type":"set","output":null},
             "timeout_secs":0.5,"retry_policy":{"max_attempts":3,"backoff_secs":null}}],
            "dependencies":{"b":["a"],"a":null}}"#,
    )
    .unwrap();
    let json = workflow.json().to_value();
    assert_eq!(
        json["steps"],
        serde_json::json!([
            {"id": "a", "name": "a", "role": "default", "action": {"type": "wait", "secs": 1},
             "timeout_secs": 2, "retry_policy": {"max_attempts": 1, "backoff_secs": 1},
             "requires_approval": false},
            {"id": "b", "name": "n", "role": "r", "action": {"type": "set", "output": null},
             "timeout_secs": 0.5, "retry_policy": {"max_attempts": 3, "backoff_secs": 1},
             "requires_approval": false},
        ])
    );
    assert_eq!(parse(serde_json::from_value(json).unwrap()).unwrap(), workflow);
    // As it was written before these fields were filled in.
    let old = r#"{"id":"a","action":{"type":"set","output":1},"timeout_secs":300.0,
        "retry_policy":{"max_attempts":1,"backoff_secs":1.0}}"#;
    assert_eq!(serde_json::from_str::<StepSpec>(old).unwrap().timeout_secs, Some(300.0));
}

#[test]
fn a_list_is_no_object_and_words_are_those_of_json() {
    let refusal = |text: &str| serde_json::from_str::<WorkflowSpec>(text).unwrap_err().to_string();
    let step = |fields: &str| format!(r#"{{"steps":[{{"id":"a",{fields}}}]}}"#);
    let set = r#""action":{"type":"set","output":1}"#;
    for text in [
        r#"[[]]"#.to_owned(),
        r#"{"steps":[["a"]]}"#.to_owned(),
        r#"{"steps":[7]}"#.to_owned(),
        format!(r#"{{"steps":[{{{set}}}]}}"#),
        format!(r#"{{"steps":[{{"id":5,{set}}}]}}"#),
        step(r#""action":["set",1]"#),
        step(r#""action":{"type":"http","method":"GET"}"#),
        step(&format!(r#"{set},"depends_on":"b""#)),
        step(r#""action":null"#),
        step(&format!(r#"{set},"retry_policy":[3,0.1]"#)),
        step(&format!(r#"{set},"retry_policy":{{"max_attempts":1.5}}"#)),
        step(&format!(r#"{set},"retry_policy":{{"max_attempts":-1}}"#)),
        step(&format!(r#"{set},"timeout_secs":"1""#)),
        step(&format!(r#"{set},"timeout_secs":[1]"#)),
    ] {
        let refusal = refusal(&text);
        for name in ["struct", "enum", "tuple", "f64", "u32", "i64", "Spec", "Policy"] {
            assert!(!refusal.contains(name), "{text}: {refusal}");
        }
    }
}

#[test]
fn a_template_is_readable_and_names_only_what_is_certain_to_be_there() {
    let of = |output: &str, needs: &str| {
        parse_text(&format!(
            r#"{{"steps":[{{"id":"a","action":{{"type":"set","output":1}}}},
                {{"id":"b-c","action":{{"type":"set","output":1}},"depends_on":["a"]}},
                {{"id":"d","action":{{"type":"set","output":{output:?}}},"depends_on":[{needs}]}}]}}"#
        ))
    };
    let poison = format!("{{{{ {}1 }}}}", "-".repeat(30_000));
    let long = format!("{{{{ input{} }}}}", ".a".repeat(30_000));
    assert!(of("{{ steps.a.output }}", r#""b-c""#).is_ok(), "through another step");
    assert!(of("{{ steps['b-c'].output }}", r#""b-c""#).is_ok());
    assert!(of("{{ steps }} {{ steps[input].output }}", "").is_ok(), "known when it is rendered");
    for (output, needs, said) in [
        ("{{ steps.a.output }}", "", "depend on it"),
        ("{{ steps.d.output }}", r#""a""#, "depend on it"),
        ("{{ steps.e.output }}", r#""a""#, "no step"),
        ("{{ steps.b-c.output }}", r#""b-c""#, "write steps['b-c']"),
        ("x {{ steps.b-c }} y", r#""b-c""#, "write steps['b-c']"),
        ("{{ steps.b-c.output.x }}", r#""b-c""#, "write steps['b-c']"),
        (&poison, "", ""),
        (&long, "", ""),
        ("{{ input.x", "", "not closed"),
        ("{% for x in [1] %}{% endfor %}", "", "not allowed"),
        ("{{ 1 + }}", "", ""),
    ] {
        let error = of(output, needs).unwrap_err();
        assert!(error.message.contains(said), "{output}: {error}");
        assert!(error.message.contains("action.output"), "{error}");
        assert!(error.message.chars().count() < 1_000, "{error}");
        assert_eq!(error.step.as_deref(), Some("d"));
    }
}

#[test]
fn fixed_texts_are_read_when_they_are_given() {
    let wait = |action: &str| {
        parse_text(&format!(r#"{{"steps":[{{"id":"a","action":{{"type":"wait",{action}}}}}]}}"#))
    };
    for good in [
        r#""until":"2030-01-01T00:00:00+02:00""#,
        r#""until":"{{ input.at }}""#,
        r#""secs":"1.5""#,
        r#""secs":"{{ input.n }}","until":null"#,
    ] {
        assert!(wait(good).is_ok(), "{good}: {:?}", wait(good));
    }
    for bad in
        [r#""until":"tomorrow""#, r#""until":"2030-01-01""#, r#""secs":"NaN""#, r#""secs":-1"#]
    {
        let error = wait(bad).unwrap_err();
        assert!(error.message.contains("it is "), "{bad}: {error}");
    }
}
