//! Whatever a template holds, the process lives: a stack that overflows ends it, and no test that
//! runs beside it would tell. So the texts are rendered by this program once more, as a child.

use std::process::Command;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::workflow::spec::{WorkflowSpec, parse};

/// Set for the child: which texts it renders.
const CHILD: &str = "SHIIOO_RENDER_IN_CHILD";
/// Longest text, bytes: the largest body that the API takes.
const TEXT_BYTES: usize = 1 << 20;
/// Stack of the child's thread, bytes: as the threads of the runtime have, which check templates.
const STACK_BYTES: usize = 2 << 20;

/// What makes an expression longer or deeper: a beginning, what is repeated, a middle, what is
/// repeated at the end, and an end.
const FORMS: [[&str; 5]; 47] = [
    ["", "- ", "1", "", ""],
    ["", "-", "1", "", ""],
    ["", "not ", "1", "", ""],
    ["", "not not ", "1 in [1]", "", ""],
    ["input", ".a", "", "", ""],
    ["input", "[0]", "", "", ""],
    ["input", "['a']", "", "", ""],
    ["input", "[0:1]", "", "", ""],
    ["input", "()", "", "", ""],
    ["input", "(1)", "", "", ""],
    ["input", "|string", "", "", ""],
    ["input", "|default(1)", "", "", ""],
    ["input", " is string", "", "", ""],
    ["input", " is not string", "", "", ""],
    ["1", " is eq 1", "", "", ""],
    ["1", "**2", "", "", ""],
    ["1", "-1", "", "", ""],
    ["1", "+1", "", "", ""],
    ["1", "*1", "", "", ""],
    ["1", "/1", "", "", ""],
    ["1", "//1", "", "", ""],
    ["1", "%1", "", "", ""],
    ["1", "~1", "", "", ""],
    ["1", "<1", "", "", ""],
    ["1", "==1", "", "", ""],
    ["1", " in [1]", "", "", ""],
    ["1", " not in [1]", "", "", ""],
    ["1", " or 1", "", "", ""],
    ["1", " and 1", "", "", ""],
    ["1", " if 1", "", "", ""],
    ["", "1 if true else ", "1", "", ""],
    ["", "1 if ", "1", " else 1", ""],
    ["", "(", "1", ")", ""],
    ["", "(", "1", ",)", ""],
    ["", "[", "1", "]", ""],
    ["", "{'a':", "1", "}", ""],
    ["", "{", "1", ":1}", ""],
    ["", "input[", "0", "]", ""],
    ["", "input(", "0", ")", ""],
    ["", "1|default(", "0", ")", ""],
    ["", "1 is eq(", "0", ")", ""],
    ["", "(-", "1", ")", ""],
    ["", "[1]*(", "1", ")", ""],
    ["[", "input.a,", "", "", "]"],
    ["", "'a'", "", "", ""],
    ["", "(", "", "", ""],
    ["", "", "", ")", ""],
];

fn text(form: &[&str; 5], times: usize, around: (&str, &str)) -> String {
    let [begin, before, middle, after, end] = form;
    let code = [begin, &*before.repeat(times), middle, &*after.repeat(times), end].concat();
    format!("{}{{{{ {code} }}}}{}", around.0, around.1)
}

/// Does with a text whatever the program does: checks it when it is stored, looks what it names,
/// and renders it.
fn use_text(text: &str) {
    let action = json!({"type": "set", "output": text});
    let spec = json!({"steps": [{"id": "a", "action": action}]});
    drop(parse(serde_json::from_value::<WorkflowSpec>(spec).unwrap()));
    let templates = Templates::default();
    templates.names(&action);
    let _ = templates.render(action, &super::tests::context(&json!([[0]]), []));
}

/// Most repetitions of what is not refused: it is the deepest that gets to the engine.
fn deepest(form: &[&str; 5]) -> usize {
    let is_taken = |times: usize| {
        let text = text(form, times, ("", ""));
        let code = single_expression(&text).unwrap_or_default();
        guard_code(code, &mut String::new(), &mut 0, false).is_ok()
    };
    (1..TOKENS_TRIED).rev().find(|times| is_taken(*times)).unwrap_or(1)
}

/// More than the tokens of any expression.
const TOKENS_TRIED: usize = 2 * bounds::TOKENS_MAX;

fn in_child(which: &str) {
    let program = std::env::current_exe().unwrap();
    // Without the name of the crate, which the harness does not print either.
    let (_, module) = module_path!().split_once("::").unwrap();
    let name = format!("{module}::the_child_renders");
    let child = Command::new(program)
        .args([&name, "--exact", "--nocapture", "--ignored"])
        .env(CHILD, which)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{which}: {:?}\n{said}", child.status);
    let out = String::from_utf8_lossy(&child.stdout);
    assert!(out.contains("1 passed"), "{which}: the child did nothing\n{out}");
}

#[test]
#[ignore = "a part of the tests below, which run it in a process of its own"]
fn the_child_renders() {
    let Ok(which) = std::env::var(CHILD) else { return };
    let forms = move || {
        for form in &FORMS {
            let repeated = form[1].len() + form[3].len();
            let most = (TEXT_BYTES - 64) / repeated;
            let times: Vec<usize> = match which.as_str() {
                "longest" => vec![most],
                _ => vec![deepest(form), most.min(5_500), most.min(300)],
            };
            for times in times {
                for around in [("", ""), ("text ", " text")] {
                    use_text(&text(form, times, around));
                }
            }
        }
        if which == "mixed" {
            mixed();
        }
    };
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn(forms).unwrap().join().unwrap();
}

/// Every pair of forms, one in the other, as deep as is allowed.
fn mixed() {
    for outer in &FORMS {
        for inner in &FORMS {
            for times in [24, 95] {
                let [begin, before, middle, after, end] = outer;
                let [begin2, before2, middle2, after2, end2] = inner;
                let code = [
                    *begin,
                    &*before.repeat(times),
                    middle,
                    &*after.repeat(times),
                    end,
                    "*(",
                    begin2,
                    &*before2.repeat(times),
                    middle2,
                    &*after2.repeat(times),
                    end2,
                    ")",
                ];
                use_text(&format!("{{{{ {} }}}}", code.concat()));
            }
        }
    }
}

#[test]
fn no_operator_repeated_up_to_the_longest_body_ends_the_process() {
    in_child("longest");
}

#[test]
fn no_operators_and_brackets_inside_one_another_end_the_process() {
    in_child("mixed");
}

fn token() -> impl Strategy<Value = String> {
    let all: Vec<&str> = FORMS.iter().flatten().copied().filter(|part| !part.is_empty()).collect();
    let more = [
        "{{",
        "}}",
        "{{-",
        "-}}",
        "{%",
        "{#",
        "#}",
        "steps.a.output",
        "steps['a-b']",
        "é",
        "\\",
        "'",
        "\"",
        ":",
        ",",
    ];
    let part = proptest::sample::select([all, more.to_vec()].concat());
    (part, 1_usize..40).prop_map(|(part, times)| part.repeat(times))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Any text is a value or an error, and what is refused when it is stored is told with its place.
    #[test]
    fn any_text_is_a_value_or_an_error(parts in proptest::collection::vec(token(), 0..12)) {
        for text in [parts.concat(), format!("{{{{ {} }}}}", parts.join(" "))] {
            let spec = json!({"steps": [{"id": "s", "action": {"type": "set", "output": [text]}}]});
            let stored = parse(serde_json::from_value::<WorkflowSpec>(spec).unwrap());
            if let Err(refused) = stored {
                prop_assert!(refused.message.contains("action.output[0]"), "{}", refused.message);
                prop_assert_eq!(refused.step.as_deref(), Some("s"));
            }
            use_text(&text);
        }
    }

    /// What was taken when it was stored is not refused for its form when it is rendered.
    #[test]
    fn what_is_stored_renders_or_fails_by_its_values(parts in proptest::collection::vec(token(), 0..6)) {
        let text = format!("{{{{ {} }}}}", parts.join(" "));
        let spec = json!({"steps": [{"id": "s", "action": {"type": "set", "output": text.clone()}}]});
        if parse(serde_json::from_value::<WorkflowSpec>(spec).unwrap()).is_ok() {
            let context = super::tests::context(&json!([[0]]), []);
            if let Err(error) = Templates::default().render(Value::String(text), &context) {
                prop_assert!(!error.to_string().contains("syntax error"), "{error}");
            }
        }
    }
}
