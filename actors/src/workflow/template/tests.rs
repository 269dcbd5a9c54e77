//! What templates give, and what they refuse.

use serde_json::json;

use super::*;

fn render(value: Value) -> Result<Value, TemplateError> {
    let context = TemplateValue::from_serialize(json!({
        "input": {"x": 3, "name": "Ada", "list": [1, 2]},
        "steps": {"a": {"output": {"y": {"z": true}}}},
    }));
    Templates::default().render(value, &context)
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
    let context = TemplateValue::from_serialize(json!({"input": {
        "x": "x".repeat(500_000),
        "list": vec!["ab"; 100_000],
    }}));
    Templates::default().render(value, &context)
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
        assert!(failed.unwrap_err().0.chars().count() <= MESSAGE_CHARS_MAX + 3, "{shown}");
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
