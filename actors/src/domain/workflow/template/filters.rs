//! The filters and tests of templates, each charged for the memory it may need.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Kwargs, Object, Rest, ValueKind};
use minijinja::{
    Environment, Error, ErrorKind, State, Value as TemplateValue, filters, tests as checks,
};

use super::CALL_BYTES_MAX;
use super::bounded::Bounded;

/// Most memory the filters of one string may ask for together, bytes.
const WORK_BYTES_MAX: usize = 64 << 20;
/// What an element of a new list is charged, bytes: its value, its share of a map or pair, slack.
const ELEMENT_BYTES: usize = 128;
/// Bytes charged for each byte of a string that a filter turns into another string: a change of
/// case makes up to 3 of 1.
const TEXT_FACTOR: usize = 4;
/// Bytes charged for each byte of a string that a filter may take apart: one character can become
/// a value of its own, in a vector that doubles.
const PARTS_FACTOR: usize = 48;

/// Memory the filters of one string have left, bytes.
#[derive(Debug)]
struct Work(AtomicUsize);

impl Object for Work {}

/// The work budget of the string that is rendered.
fn work(state: &State<'_, '_>) -> Arc<Work> {
    state.get_or_set_temp_object("work", || Work(AtomicUsize::new(WORK_BYTES_MAX)))
}

fn charge(state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
    let taken = work(state)
        .0
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
    taken.map(drop).map_err(|_| too_much())
}

fn too_much() -> Error {
    invalid("the filters of this string need too much memory")
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// A buffer as large as what is left, charged by [`written`].
fn bounded(state: &State<'_, '_>) -> Bounded {
    Bounded::new(work(state).0.load(Ordering::Relaxed).min(CALL_BYTES_MAX))
}

fn written(state: &State<'_, '_>, out: Bounded) -> Result<TemplateValue, Error> {
    if out.full {
        return Err(too_much());
    }
    charge(state, out.bytes.len().saturating_mul(2))?;
    let text = String::from_utf8(out.bytes).map_err(|_| invalid("the text is not UTF-8"))?;
    Ok(TemplateValue::from(text))
}

fn is_plain(value: &TemplateValue) -> bool {
    matches!(
        value.kind(),
        ValueKind::String | ValueKind::Number | ValueKind::Bool | ValueKind::None
    )
}

/// Charges for strings that become strings; nothing but plain values can.
fn charge_text(state: &State<'_, '_>, args: &[TemplateValue]) -> Result<(), Error> {
    for arg in args {
        if !is_plain(arg) {
            return Err(invalid("this filter takes plain values only"));
        }
        let bytes = arg.as_str().map_or(0, str::len);
        charge(state, bytes.saturating_mul(TEXT_FACTOR).saturating_add(ELEMENT_BYTES))?;
    }
    Ok(())
}

/// Charges for values that may be taken apart into a list.
fn charge_parts(state: &State<'_, '_>, args: &[TemplateValue]) -> Result<(), Error> {
    for arg in args {
        if let Some(text) = arg.as_str() {
            charge(state, text.len().saturating_mul(PARTS_FACTOR))?;
        } else if let Ok(items) = arg.try_iter() {
            for item in items {
                let bytes = item.as_str().map_or(0, str::len).saturating_mul(TEXT_FACTOR);
                charge(state, bytes.saturating_add(ELEMENT_BYTES))?;
            }
        }
        charge(state, ELEMENT_BYTES)?;
    }
    Ok(())
}

/// Adds filters of the engine that run after their arguments have been charged.
macro_rules! charged {
    ($environment:ident, $charge:ident, $($name:literal => $filter:path),+ $(,)?) => {$({
        let filter = TemplateValue::from_function($filter);
        $environment.add_filter(
            $name,
            move |state: &State<'_, '_>, args: Rest<TemplateValue>| {
                $charge(state, &args)?;
                filter.call(state, &args)
            },
        );
    })+};
}

/// All filters there are.
pub(super) fn add_filters(environment: &mut Environment<'static>) {
    // These make nothing larger than a number or give back what is there.
    environment.add_filter("length", filters::length);
    environment.add_filter("count", filters::length);
    environment.add_filter("default", filters::default);
    environment.add_filter("d", filters::default);
    environment.add_filter("first", filters::first);
    environment.add_filter("min", filters::min);
    environment.add_filter("max", filters::max);
    environment.add_filter("int", filters::int);
    environment.add_filter("float", filters::float);
    environment.add_filter("bool", filters::bool);
    environment.add_filter("abs", filters::abs);
    environment.add_filter("round", filters::round);
    charged!(environment, charge_text,
        "upper" => filters::upper,
        "lower" => filters::lower,
        "title" => filters::title,
        "capitalize" => filters::capitalize,
        "trim" => filters::trim,
    );
    charged!(environment, charge_parts,
        "last" => filters::last,
        "sort" => filters::sort,
        "unique" => filters::unique,
        "reverse" => filters::reverse,
        "list" => filters::list,
        "items" => filters::items,
        "dictsort" => filters::dictsort,
        "split" => filters::split,
        "lines" => filters::lines,
        "select" => filters::select,
        "reject" => filters::reject,
        "selectattr" => filters::selectattr,
        "rejectattr" => filters::rejectattr,
    );
    charged!(environment, charge_map, "map" => filters::map);
    environment.add_filter("sum", sum);
    environment.add_filter("string", string);
    environment.add_filter("join", join);
    environment.add_filter("replace", replace);
    environment.add_filter("tojson", tojson);
    environment.add_filter("__number", |value: &TemplateValue| match value.kind() {
        ValueKind::Number => Ok(value.clone()),
        _ => Err(invalid("only numbers can be multiplied")),
    });
    environment.add_filter("__plain", |value: &TemplateValue| {
        if is_plain(value) {
            Ok(value.clone())
        } else {
            Err(invalid("what is looked for with in must be a plain value"))
        }
    });
}

fn charge_map(state: &State<'_, '_>, args: &[TemplateValue]) -> Result<(), Error> {
    // With a filter's name or a default, each element could become a large value.
    let attribute_only = match args {
        [_, named] if named.is_kwargs() => Kwargs::try_from(named.clone())
            .is_ok_and(|named| named.has("attribute") && !named.has("default")),
        _ => false,
    };
    if !attribute_only {
        return Err(invalid("map takes attribute=... and nothing else"));
    }
    charge_parts(state, args)
}

/// Numbers only: strings and lists would be put together again for every element.
fn sum(state: &State<'_, '_>, values: TemplateValue) -> Result<TemplateValue, Error> {
    if values.try_iter()?.any(|value| value.kind() != ValueKind::Number) {
        return Err(invalid("only numbers can be summed"));
    }
    filters::sum(state, values)
}

fn string(state: &State<'_, '_>, value: &TemplateValue) -> Result<TemplateValue, Error> {
    let mut out = bounded(state);
    // Its only failure is that the buffer is full, which `written` tells.
    let _ = fmt::Write::write_fmt(&mut out, format_args!("{value}"));
    written(state, out)
}

fn join(
    state: &State<'_, '_>,
    values: &TemplateValue,
    between: Option<&str>,
) -> Result<TemplateValue, Error> {
    let mut out = bounded(state);
    for (at, value) in values.try_iter()?.enumerate() {
        let between = if at > 0 { between.unwrap_or_default() } else { "" };
        if fmt::Write::write_fmt(&mut out, format_args!("{between}{value}")).is_err() {
            break;
        }
    }
    written(state, out)
}

fn replace(
    state: &State<'_, '_>,
    text: &str,
    from: &str,
    to: &str,
) -> Result<TemplateValue, Error> {
    let (mut out, mut done) = (bounded(state), 0);
    for (at, found) in text.match_indices(from) {
        if !(out.push(&text.as_bytes()[done..at]) && out.push(to.as_bytes())) {
            return Err(too_much());
        }
        done = at + found.len();
    }
    out.push(&text.as_bytes()[done..]);
    written(state, out)
}

/// Plain JSON without spaces; HTML is not escaped, unlike in the engine's own filter.
fn tojson(state: &State<'_, '_>, value: &TemplateValue) -> Result<TemplateValue, Error> {
    let mut out = bounded(state);
    let done = serde_json::to_writer(&mut out, value);
    if !out.full && done.is_err() {
        return Err(invalid("this value cannot be written as JSON"));
    }
    written(state, out)
}

/// All tests there are. They keep nothing, and take no values apart.
pub(super) fn add_tests(environment: &mut Environment<'static>) {
    environment.add_test("defined", checks::is_defined);
    environment.add_test("undefined", checks::is_undefined);
    environment.add_test("none", checks::is_none);
    environment.add_test("boolean", checks::is_boolean);
    environment.add_test("true", checks::is_true);
    environment.add_test("false", checks::is_false);
    environment.add_test("number", checks::is_number);
    environment.add_test("integer", checks::is_integer);
    environment.add_test("float", checks::is_float);
    environment.add_test("string", checks::is_string);
    environment.add_test("sequence", checks::is_sequence);
    environment.add_test("iterable", checks::is_iterable);
    environment.add_test("mapping", checks::is_mapping);
    environment.add_test("odd", checks::is_odd);
    environment.add_test("even", checks::is_even);
    environment.add_test("divisibleby", checks::is_divisibleby);
    for name in ["eq", "equalto", "=="] {
        environment.add_test(name, checks::is_eq);
    }
    for name in ["ne", "!="] {
        environment.add_test(name, checks::is_ne);
    }
    for name in ["lt", "lessthan", "<"] {
        environment.add_test(name, checks::is_lt);
    }
    for name in ["le", "<="] {
        environment.add_test(name, checks::is_le);
    }
    for name in ["gt", "greaterthan", ">"] {
        environment.add_test(name, checks::is_gt);
    }
    for name in ["ge", ">="] {
        environment.add_test(name, checks::is_ge);
    }
    environment.add_test("startingwith", |text: &str, start: &str| text.starts_with(start));
    environment.add_test("endingwith", |text: &str, end: &str| text.ends_with(end));
}
