//! Bodies that cost whoever reads them as much as possible.

use serde_json::{Value, json};

use crate::spec;

/// Steps that one run may have.
const STEPS: usize = 1_000;
const INPUT_BYTES: [usize; 3] = [64 << 10, 256 << 10, (1 << 20) - 1_024];
const OUTPUT_STEPS: usize = 16;
const DEFINITION_STEPS: usize = 900;
const DEFINITION_STEP_BYTES: usize = 900;

/// A run whose every step calls a service that does not answer.
pub(super) fn silent_calls(url: &str) -> Value {
    let call = |number| {
        let call = spec::http(&format!("s{number}"), "GET", url);
        spec::with(call, json!({ "timeout_secs": 600 }))
    };
    spec::inline((0..STEPS).map(call))
}

/// A run of templates: some that are refused, some that run out of fuel, some that only take long.
pub(super) fn heavy(turn: usize) -> Value {
    let range =
        "{% for i in range(9999) %}{% for j in range(9999) %}{{ i * j }}{% endfor %}{% endfor %}";
    let template = match turn % 9 {
        0 => range.to_owned(),
        1 => format!("{{{{ {}1 }}}}", "-".repeat(5_400)),
        2 => format!("{{{{ {} }}}}", vec!["1"; 490].join(" + ")),
        3 => format!("{{{{ {}1{} }}}}", "(".repeat(49), ")".repeat(49)),
        4 => format!("{{{{ input{} }}}}", ".a".repeat(30_000)),
        5 => "{% for i in input %}{{ input | join('-') | upper | length }}{% endfor %}".to_owned(),
        6 => "{{ ['x'] * 900000 }}".to_owned(),
        7 => "{{ input | tojson }}{{ input | sort | reverse | list | tojson }}".to_owned(),
        _ => "{{ input | map('upper') | join(',') }}".to_owned(),
    };
    let input: Vec<_> = (0..20_000).map(|at| format!("{at}")).collect();
    spec::inline_with(json!(input), (0..40).map(|at| spec::set(&format!("t{at}"), &*template)))
}

/// A run whose input is all that there is to it.
pub(super) fn big_input(turn: usize) -> Value {
    let bytes = INPUT_BYTES[turn % INPUT_BYTES.len()];
    spec::inline_with(json!("x".repeat(bytes)), [spec::set("a", 1)])
}

/// A run that multiplies its input.
pub(super) fn big_outputs() -> Value {
    let copies = (0..OUTPUT_STEPS).map(|at| spec::set(&format!("o{at}"), "{{ input }}"));
    let names: Vec<_> = (0..OUTPUT_STEPS).map(|at| format!("o{at}")).collect();
    let needs: Vec<_> = names.iter().map(String::as_str).collect();
    let sums = (0..OUTPUT_STEPS).map(|at| {
        let sum = "{{ steps.o0.output | length + steps.o15.output | length }}";
        spec::after(spec::set(&format!("s{at}"), sum), &needs)
    });
    spec::inline_with(json!(vec![1; 200_000]), copies.chain(sums))
}

/// A workflow of nearly the size that a body may have.
pub(super) fn definition(turn: usize) -> Value {
    let text = "y".repeat(DEFINITION_STEP_BYTES);
    let steps = (0..DEFINITION_STEPS).map(|at| spec::set(&format!("d{turn}-{at}"), &*text));
    spec::workflow(steps)
}

/// The largest page of something.
pub(super) fn page(turn: usize, tenant: &str) -> String {
    match turn % 6 {
        0 => format!("{tenant}/runs?limit=10000"),
        1 => "/api/tenants?limit=10000".to_owned(),
        2 => format!("{tenant}/workflows?limit=10000"),
        3 => format!("{tenant}/locks?limit=10000"),
        4 => format!("{tenant}/runs?limit=10000&status=failed"),
        _ => "/api/cluster/nodes?limit=10000".to_owned(),
    }
}

/// What is no JSON, or only just.
pub(super) fn malformed(turn: usize) -> Vec<u8> {
    match turn % 5 {
        0 => b"{\"workflow\": {\"steps\": [".to_vec(),
        1 => b"[".repeat(100_000),
        2 => vec![0xff; 10_000],
        3 => format!("{{\"workflow\":{}}}", "9".repeat(100_000)).into_bytes(),
        _ => format!("{{\"input\":\"{}\\ud800\"}}", "\\u0000".repeat(10_000)).into_bytes(),
    }
}
