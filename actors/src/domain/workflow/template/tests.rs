//! What templates give, and what they refuse.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::domain::ids::RunId;
use crate::domain::json::Json;

fn render(value: Value) -> Result<Value, TemplateError> {
    let input = json!({"x": 3, "name": "Ada", "list": [1, 2]});
    Templates::default().render(value, &context(&input, [("a", json!({"y": {"z": true}}))]))
}

pub(super) fn context<const N: usize>(input: &Value, outputs: [(&str, Value); N]) -> Context {
    let outputs = (0_u16..).zip(outputs);
    let outputs =
        outputs.map(|(step, (id, output))| (id.to_owned(), (step, Json::from_value(&output))));
    let run = RunId::from_uuid(uuid::Uuid::nil());
    let offer = Offer { run, input: Json::from_value(input), outputs: outputs.collect() };
    Context::new(offer, Arc::default(), Limits::default())
}

#[test]
fn one_expression_keeps_its_type() {
    assert_eq!(render(json!("{{ input.x }}")), Ok(json!(3)));
    assert_eq!(render(json!(["{{ input.list }}", 1])), Ok(json!([[1, 2], 1])));
    assert_eq!(render(json!({"k": "{{steps.a.output.y}}"})), Ok(json!({"k": {"z": true}})));
    assert_eq!(render(json!("{{ input.name | upper }}")), Ok(json!("ADA")));
    assert_eq!(render(json!("{{ input.x + 1 }}")), Ok(json!(4)));
}

#[test]
fn text_around_expressions_is_text() {
    assert_eq!(render(json!("{{ input.name }} has {{ input.x }}")), Ok(json!("Ada has 3")));
    assert_eq!(render(json!("plain <b>")), Ok(json!("plain <b>")));
}

#[test]
fn what_is_not_there_or_not_allowed_fails() {
    for text in [
        "{{ input.nope }}",
        "x {{ steps.b.output }}",
        "{{ secrets.key }}",
        "{% for i in range(3) %}{{ i }}{% endfor %}",
        "{% include 'x' %}",
        "{{ unclosed",
        "{{ range(1000000000) | list }}",
    ] {
        assert!(render(json!(text)).is_err(), "{text}");
    }
}

#[test]
fn only_strings_with_braces_are_templates() {
    assert!(!has_templates(&json!({"a": [1, "x", null]})));
    assert!(has_templates(&json!({"a": [1, {"b": "{{ x }}"}]})));
}

/// A context as large as a run can bring along, more or less.
fn render_large(value: Value) -> Result<Value, TemplateError> {
    let input = json!({"x": "x".repeat(500_000), "list": vec!["ab"; 100_000]});
    Templates::default().render(value, &context(&input, []))
}

#[test]
fn what_makes_much_out_of_little_fails() {
    let nested = |open: &str, close: &str| {
        format!("{{{{ {}'\"\\\\\"'{} }}}}", open.repeat(60), close.repeat(60))
    };
    let many =
        |item: &str, count| format!("{{{{ [{}] | length }}}}", [item].repeat(count).join(","));
    for text in [
        r"{{ 'a\nb' | indent(100000000000) }}",
        "{{ [1] | slice(100000000000) }}",
        "{{ [1] | batch(100000000000, 0) }}",
        "{{ [1] | tojson(indent=100000000000) }}",
        "{{ [[1]] | tojson(100000000000) }}",
        "{{ '%100000000000d' | format(1) }}",
        "{{ [1] | pprint }}",
        "{{ range(100000000000) | list }}",
        "{{ lipsum(100000) }}",
        "{{ 'x' * 100000000 }}",
        "{{ 100000000 * 'x' }}",
        "{{ 100000000*'x' }} text",
        "{{ 100000000 * ('x') }}",
        "{{ 100000000 * - 'x' }}",
        "{{ 100000000 * 1 is odd | string }}",
        "{{ 100000000 * input.x[0] }}",
        "{{ 100000000 * input.x | first }}",
        "{{ [1] * 100000000000 }}",
        "text {{ 100000000000 * [1] }}",
        "{# ' #}{{ 'x' * 100000000 }}{# ' #}",
        r"{{ '\'' ~ 'x' * 100000000 }}",
        "{{ {'a': 'x' * 100000000} }}",
        "{{ ('x' * 100000000) | length }} {{ 1 }}",
        "{{ 'x' ~ 'y' }}",
        "{{ 'x' | map('upper') }}",
        "{{ input.list | map('default', input.x) | list }}",
        "{{ input.list | map(attribute='no', default=input.x) }}",
        "{{ input.list | join(input.x) | length }}",
        "{{ input.x | replace('', input.x) | length }}",
        "{{ input.x | replace('x', input.x) | length }}",
        "{{ [input.x, input.x] | sum }}",
        "{{ [input.x] in input.x }}",
        "{{ [input.x] not in input.x }}",
        "{{ input.x[::-1] }}",
        "{{ input.x[0:3:9223372036854775807] }}",
        "{{ [input.x, input.x, input.x] }}",
        "{{ input.x }}{{ input.x }}{{ input.x }}",
        &nested("[", "] | string"),
        &nested("", " | tojson"),
        &many("input.x | upper", 1_000),
        &many("input.x | split('')", 1_000),
        &many("input.x + input.x", 1_000),
        &many("input.x[:]", 1_000),
    ] {
        let shown: String = text.chars().take(80).collect();
        let failed = render_large(json!(text));
        assert!(failed.is_err(), "{shown}");
        assert!(failed.unwrap_err().text.chars().count() <= MESSAGE_CHARS_MAX + 3, "{shown}");
    }
}

#[test]
fn a_result_is_nested_as_deep_as_a_value_may_be() {
    use crate::domain::json::DEPTH_MAX;
    let lists: fn(usize) -> Value = |levels| (0..levels).fold(json!(1), |inner, _| json!([inner]));
    let maps: fn(usize) -> Value =
        |levels| (0..levels).fold(json!(1), |inner, _| json!({ "k": inner }));
    for of in [lists, maps] {
        for text in ["{{ [input.x] }}", "{{ {'k': input.x} }}"] {
            let render = |levels| {
                let input = json!({ "x": of(levels) });
                Templates::default().render(json!(text), &context(&input, []))
            };
            assert!(render(DEPTH_MAX - 1).is_ok(), "{text}");
            let error = render(DEPTH_MAX).unwrap_err().to_string();
            assert!(error.contains("nested deeper"), "{text}: {error}");
        }
    }
}

/// A few pass, however large; more of them need too much together.
#[test]
fn the_filters_of_one_string_share_their_memory() {
    let chain = |filter: &str, count| format!("input.x{}", format!(" | {filter}").repeat(count));
    let list = |item: &str, count| format!("[{}]", [item].repeat(count).join(", "));
    for (few, many) in [
        (chain("upper", 30), chain("upper", 40)),
        (chain("string", 60), chain("string", 70)),
        (list("input.x | split('y') | length", 2), list("input.x | split('y') | length", 3)),
    ] {
        let render = |expression| render_large(json!(format!("{{{{ {expression} | length }}}}")));
        assert!(render(&few).is_ok(), "{few}: {:?}", render(&few));
        let error = render(&many).unwrap_err().to_string();
        assert!(error.contains("too much memory"), "{many}: {error}");
    }
}

#[test]
fn one_call_has_one_budget() {
    let of = |text: &str, count| render_large(json!(vec![text; count]));
    assert!(of("{{ input.x }}", 4).is_ok());
    assert!(of("{{ input.x }}", 5).is_err());
    assert!(of("{{ input.x }}", 20_000).is_err());
    assert!(of("a {{ input.x }}", 4).is_ok());
    assert!(of("a {{ input.x }}", 5).is_err());
    assert!(of("{{ 1 }}", CALL_STRINGS_MAX).is_ok());
    assert!(of("{{ 1 }}", CALL_STRINGS_MAX + 1).is_err());
    assert!(of("plain", CALL_STRINGS_MAX + 1).is_ok());
}

#[test]
fn guards_leave_the_meaning_alone() {
    for (text, expected) in [
        ("{{ input.x * 2 }}", json!(6)),
        ("{{ 2 * input.x }}", json!(6)),
        ("{{ 2*input.x*2+1 }}", json!(13)),
        ("{{ -2 * -3 | abs }}", json!(-6)),
        ("{{ 2 * 3 ** 2 }}", json!(18)),
        ("{{ 10 * 12 * 1.5e1 + 1e+1 * 2 }}", json!(1820.0)),
        ("{{ 8 * 2 // 3 * 2 }}", json!(10)),
        ("{{ 3 ** 2 * 2 }}", json!(18)),
        ("{{ (1 + 2) * (3 * (4 - 2)) }}", json!(18)),
        ("{{ 1.5 * input.x if input.x * 2 > 5 else 0 }}", json!(4.5)),
        ("{{ (2 * 3) is even and 2 * 3 == 6 }}", json!(true)),
        ("{{ input.list | first * 4 }}", json!(4)),
        ("{{ {'a': 2 * input.x}['a'] * 2 }}", json!(12)),
        ("{{ '2 * 3 ~ \\' in' }}", json!("2 * 3 ~ ' in")),
        ("**a** ~ {# 2 * 3 #}{{ 2 * 3 }}* in", json!("**a** ~ 6* in")),
        ("{{- 2 * 3 -}} x", json!("6x")),
        ("{{ {'a': {'b': 1}} | tojson }}", json!(r#"{"a":{"b":1}}"#)),
        ("{{ 1 in input.list }}", json!(true)),
        ("{{ 3 * 1 not in input.list }}", json!(true)),
        ("{{ not 1 in input.list }}", json!(false)),
        ("{{ 'd' in input.name }}", json!(true)),
        ("{{ input.name[:2] }}", json!("Ad")),
        ("{{ 'a' + input.name }}", json!("aAda")),
    ] {
        assert_eq!(render(json!(text)), Ok(expected), "{text}");
    }
}

#[test]
fn the_filters_work() {
    for (text, expected) in [
        ("{{ [1, 'a', [2]] | join('-') }}", json!("1-a-[2]")),
        ("{{ ['a', 'b'] | join }}", json!("ab")),
        ("{{ 'aXbX' | replace('X', '--') }}", json!("a--b--")),
        ("{{ 'ab' | replace('', '.') }}", json!(".a.b.")),
        ("{{ [1, {'a': '<'}] | tojson }}", json!(r#"[1,{"a":"<"}]"#)),
        ("{{ input.list | string }}", json!("[1, 2]")),
        ("{{ input.list | sum }}", json!(3)),
        ("{{ input.nope | default('d') }}", json!("d")),
        ("{{ ' a b ' | trim | split(' ') }}", json!(["a", "b"])),
        ("{{ [3, 1, 3] | unique | sort(reverse=true) }}", json!([3, 1])),
        ("{{ [1, 2, 3] | select('odd') | list }}", json!([1, 3])),
        ("{{ [{'a': 1}, {'a': 2}] | map(attribute='a') }}", json!([1, 2])),
        ("{{ [{'a': 1}, {'a': 2}] | selectattr('a', '>', 1) }}", json!([{"a": 2}])),
        ("{{ {'b': 1, 'a': 2} | dictsort }}", json!([["a", 2], ["b", 1]])),
        ("{{ {'b': 1} | items | first | last }}", json!(1)),
        ("{{ 2.6 | round | int + '4' | int }}", json!(7)),
        ("{{ 'x' is string and input.nope is not defined }}", json!(true)),
        ("{{ 'ada' | title if 'ada' is startingwith 'a' }}", json!("Ada")),
    ] {
        assert_eq!(render(json!(text)), Ok(expected), "{text}");
    }
}

#[test]
fn nothing_is_rounded_cut_or_made_null_silently() {
    let deep = |levels| format!("{{{{ {}1{} }}}}", "[".repeat(levels), "]".repeat(levels));
    for (text, said) in [
        ("{{ 123456789012345678901234567890 }}", "64 bits"),
        ("{{ 2 ** 64 }}", "64 bits"),
        ("{{ 18446744073709551615 + 1 }}", "64 bits"),
        ("{{ -9223372036854775808 - 1 }}", "64 bits"),
        ("{{ [{'a': 2 ** 64}] }}", "64 bits"),
        ("{{ 1e308 * 10 }}", "cannot be written"),
        ("{{ [input.nope] }}", "not there"),
        ("{{ {[1]: 2} }}", "name of a field"),
    ] {
        let error = render(json!(text)).unwrap_err().to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
    assert_eq!(render(json!("{{ 2 ** 63 }}")), Ok(json!(9_223_372_036_854_775_808_u64)));
    assert_eq!(render(json!("{{ 18446744073709551615 }}")), Ok(json!(u64::MAX)));
    assert_eq!(render(json!("{{ -9223372036854775808 }}")), Ok(json!(i64::MIN)));
    assert_eq!(render(json!("{{ {1: 2.0, true: none} }}")), Ok(json!({"1": 2.0, "true": null})));
    assert_eq!(render(json!("{{ 2 ** 64 }} is text")), Ok(json!("18446744073709551616 is text")));
    assert!(render(json!(deep(50))).is_ok());
    // What is deep may come from anywhere.
    let wrapped = |levels| {
        let input = (0..levels).fold(json!(1), |inner, _| json!([inner]));
        Templates::default().render(json!("{{ [[input]] }}"), &context(&input, []))
    };
    assert_eq!(crate::domain::json::depth(&wrapped(62).unwrap()), 64);
    assert!(wrapped(63).unwrap_err().to_string().contains("64 levels"));
}

#[test]
fn a_string_has_little_fuel() {
    let of = |count: usize| render(json!("{{ input.x }} ".repeat(count)));
    assert!(of(1_000).is_ok());
    let error = of(50_000).unwrap_err().to_string();
    assert!(error.contains("fuel"), "{error}");
}

#[test]
fn a_render_ends_when_its_time_is_over_or_nobody_waits() {
    let over = |limits: Limits| {
        let offer = Offer {
            run: RunId::from_uuid(uuid::Uuid::nil()),
            input: Json::null(),
            outputs: std::collections::BTreeMap::new(),
        };
        let context = Context::new(offer, Arc::default(), limits);
        Templates::default().render(json!(["{{ 1 }}"]), &context)
    };
    assert_eq!(over(Limits::default()), Ok(json!([1])));
    let late = Limits { is_late: Some(Arc::new(|| true)), ..Limits::default() };
    assert!(over(late).unwrap_err().out_of_time);
    let cancelled = Limits::default();
    cancelled.cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(over(cancelled).unwrap_err().out_of_time);
}

#[test]
fn large_values_are_not_looked_at_for_ever() {
    let numbers = json!(vec![1; 450_000]);
    let of = |text: String| Templates::default().render(json!(text), &context(&numbers, []));
    let copies = |count: usize| vec!["input"; count].join(",");
    assert_eq!(of("{{ input | length }}".to_owned()), Ok(json!(450_000)));
    let error = of(format!("{{{{ [{0}] == [{0}] }}}}", copies(200))).unwrap_err().to_string();
    assert!(error.contains("too often"), "{error}");
    // A map takes many times its text.
    let maps = json!(vec![json!({"a": 1}); 200_000]);
    let error = Templates::default().render(json!("{{ input | length }}"), &context(&maps, []));
    assert!(error.unwrap_err().to_string().contains("memory"));
}

#[test]
fn what_templates_name_is_found() {
    let names = |text: &str| Templates::default().names(&json!([{ "a": text }]));
    let of = |input: bool, any_step: bool, steps: &[&str]| Names {
        input,
        any_step,
        steps: steps.iter().map(|id| (*id).to_owned()).collect(),
    };
    for (text, expected) in [
        ("plain steps.a input", of(false, false, &[])),
        ("{{ input.x }} and {{ steps.a.output }}", of(true, false, &["a"])),
        (
            "{{ steps['b-c'].output if steps.a is defined else input }}",
            of(true, false, &["a", "b-c"]),
        ),
        ("{{ steps }}", of(false, true, &[])),
        ("{{ steps[input.x].output }}", of(true, true, &[])),
        (
            "{{ [1, {'k': steps.a}] | default(steps.b.output[0:input.n]) }}",
            of(true, false, &["a", "b"]),
        ),
        ("{# steps.a #}{{ 'steps.b' }}", of(false, false, &[])),
        ("{{ input.steps.a }}", of(true, false, &[])),
    ] {
        assert_eq!(names(text), expected, "{text}");
    }
}
