//! Renders the strings of a step's action.
//!
//! Expressions and filters of the template language work, statements (loops, includes) do not.
//! Only the leader renders, and what comes out is recorded: `apply` never gets here.
//!
//! A template is written by a tenant and must not take the process down, so memory is bounded
//! before it is allocated:
//!
//! - What one call of [`Templates::render`] renders shares `CALL_BYTES_MAX` and
//!   `CALL_STRINGS_MAX`; one string may be `RENDERED_BYTES_MAX` long. Text is cut off while it
//!   is written; a value that keeps its type is charged by its JSON size before it is copied.
//! - No function of the template language exists, and only the filters of `add_filters`. Those
//!   that make new strings or lists draw on `WORK_BYTES_MAX`, which the filters of one string
//!   share, before they run or, where the size of the result is not known, while they write.
//! - `*` takes numbers only (it repeats strings and lists otherwise), `in` takes a plain value on
//!   its left (a list would be written out), `~` is refused (it writes lists out), a slice has no
//!   step, and `+` and `:` may stand `COPIES_MAX` times in a string: each may copy a string as
//!   long as everything in the context. `guard_code` sees to this before anything is compiled.
//!
//! Time is bounded for each string only, by `FUEL_INSTRUCTIONS_MAX`.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Kwargs, Object, Rest, ValueKind};
use minijinja::{
    Environment, Error, ErrorKind, State, UndefinedBehavior, Value as TemplateValue, filters,
    tests as checks,
};
use serde_json::Value;

/// Instructions one string may cost.
const FUEL_INSTRUCTIONS_MAX: u64 = 100_000;
/// Longest rendered string, bytes.
const RENDERED_BYTES_MAX: usize = 1 << 20;
/// Most bytes the templates of one call may render together.
const CALL_BYTES_MAX: usize = 2 << 20;
/// Most template strings in one call.
const CALL_STRINGS_MAX: usize = 1_000;
/// Most memory the filters of one string may ask for together, bytes.
const WORK_BYTES_MAX: usize = 64 << 20;
/// Most `+` and `:` in the expressions of one string.
const COPIES_MAX: usize = 32;
/// Longest message of an error, characters: it quotes the template.
const MESSAGE_CHARS_MAX: usize = 500;

/// What an element of a new list is charged, bytes: its value, its share of a map or pair, slack.
const ELEMENT_BYTES: usize = 128;
/// Bytes charged for each byte of a string that a filter turns into another string: a change of
/// case makes up to 3 of 1.
const TEXT_FACTOR: usize = 4;
/// Bytes charged for each byte of a string that a filter may take apart: one character can become
/// a value of its own, in a vector that doubles.
const PARTS_FACTOR: usize = 48;

/// The filter the guards insert; see [`guard_code`].
const NUMBER_GUARD: &str = "|__number";
/// The filter the guards insert before `in`; see [`guard_code`].
const PLAIN_GUARD: &str = "|__plain";

/// A template that cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template: {0}")]
pub struct TemplateError(String);

/// The template engine, set up once.
#[derive(Debug)]
pub struct Templates(Environment<'static>);

impl Default for Templates {
    fn default() -> Self {
        let mut environment = Environment::empty();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL_INSTRUCTIONS_MAX));
        add_filters(&mut environment);
        add_tests(&mut environment);
        Self(environment)
    }
}

/// Whether any string in `value` is a template.
pub fn has_templates(value: &Value) -> bool {
    match value {
        Value::String(text) => is_template(text),
        Value::Array(items) => items.iter().any(has_templates),
        Value::Object(fields) => fields.values().any(has_templates),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn is_template(text: &str) -> bool {
    text.contains("{{") || text.contains("{%") || text.contains("{#")
}

impl TemplateError {
    fn new(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        match message.char_indices().nth(MESSAGE_CHARS_MAX) {
            Some((end, _)) => Self(format!("{}...", &message[..end])),
            None => Self(message),
        }
    }
}

impl Templates {
    /// Renders every string in `value` with the names in `context`.
    ///
    /// # Errors
    /// When a string is no valid template, names what is not there, or costs too much; and when
    /// all strings together cost too much.
    pub fn render(&self, value: Value, context: &TemplateValue) -> Result<Value, TemplateError> {
        self.render_within(value, context, &mut Budget::default())
    }

    fn render_within(
        &self,
        value: Value,
        context: &TemplateValue,
        budget: &mut Budget,
    ) -> Result<Value, TemplateError> {
        Ok(match value {
            Value::String(text) if is_template(&text) => {
                self.render_text(&text, context, budget)?
            }
            Value::Array(items) => {
                let items = items.into_iter().map(|item| self.render_within(item, context, budget));
                Value::Array(items.collect::<Result<_, _>>()?)
            }
            Value::Object(fields) => {
                let fields = fields
                    .into_iter()
                    .map(|(name, field)| Ok((name, self.render_within(field, context, budget)?)));
                Value::Object(fields.collect::<Result<_, TemplateError>>()?)
            }
            plain => plain,
        })
    }

    /// A string that is one expression keeps the value's type; any other becomes a string.
    fn render_text(
        &self,
        text: &str,
        context: &TemplateValue,
        budget: &mut Budget,
    ) -> Result<Value, TemplateError> {
        budget.take_string()?;
        if text.contains("{%") {
            return Err(TemplateError::new("statements ({% ... %}) are not allowed"));
        }
        let failed = |error: Error| TemplateError::new(format_args!("{error} in {text:?}"));
        let Some(expression) = single_expression(text) else {
            let guarded = guard_text(text)?;
            let template = self.0.template_from_str(&guarded).map_err(failed)?;
            let mut out = Bounded::new(budget.string_bytes());
            let rendered = template.render_captured_to(context, &mut out).map(drop);
            if out.full {
                return Err(too_long(out.limit));
            }
            rendered.map_err(failed)?;
            budget.bytes -= out.bytes.len();
            return String::from_utf8(out.bytes).map(Value::String).map_err(TemplateError::new);
        };
        let mut guarded = String::new();
        guard_code(expression, &mut guarded, &mut 0, false)?;
        let compiled = self.0.compile_expression(&guarded).map_err(failed)?;
        let value = compiled.eval(context).map_err(failed)?;
        if value.is_undefined() {
            return Err(TemplateError::new(format_args!("{expression:?} is not there")));
        }
        let mut size = Counted { left: budget.string_bytes(), full: false };
        let measured = serde_json::to_writer(&mut size, &value);
        if size.full {
            return Err(too_long(budget.string_bytes()));
        }
        measured.map_err(TemplateError::new)?;
        budget.bytes -= budget.string_bytes() - size.left;
        serde_json::to_value(&value).map_err(TemplateError::new)
    }
}

/// What one call has left.
struct Budget {
    strings: usize,
    bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { strings: CALL_STRINGS_MAX, bytes: CALL_BYTES_MAX }
    }
}

impl Budget {
    fn take_string(&mut self) -> Result<(), TemplateError> {
        self.strings = self.strings.checked_sub(1).ok_or_else(|| {
            TemplateError::new(format_args!("more than {CALL_STRINGS_MAX} template strings"))
        })?;
        Ok(())
    }

    /// How long the next string may be.
    fn string_bytes(&self) -> usize {
        self.bytes.min(RENDERED_BYTES_MAX)
    }
}

fn too_long(limit: usize) -> TemplateError {
    if limit == RENDERED_BYTES_MAX {
        TemplateError::new(format_args!("the result is longer than {RENDERED_BYTES_MAX} bytes"))
    } else {
        TemplateError::new(format_args!(
            "the results together are longer than {CALL_BYTES_MAX} bytes"
        ))
    }
}

/// What is between the braces of `{{ ... }}`, when the text is nothing else.
fn single_expression(text: &str) -> Option<&str> {
    let inner = text.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    (!inner.contains("{{") && !inner.contains("}}")).then(|| inner.trim_matches('-').trim())
}

/// A buffer that refuses to grow beyond its limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    full: bool,
}

impl Bounded {
    fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, full: false }
    }

    fn push(&mut self, bytes: &[u8]) -> bool {
        self.full |= bytes.len() > self.limit - self.bytes.len();
        if !self.full {
            self.bytes.extend_from_slice(bytes);
        }
        !self.full
    }
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.push(text.as_bytes()) { Ok(()) } else { Err(fmt::Error) }
    }
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.push(bytes) { Ok(bytes.len()) } else { Err(io::ErrorKind::FileTooLarge.into()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts what is written and keeps nothing.
struct Counted {
    left: usize,
    full: bool,
}

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(left) = self.left.checked_sub(bytes.len()) {
            self.left = left;
            Ok(bytes.len())
        } else {
            self.full = true;
            Err(io::ErrorKind::FileTooLarge.into())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a token is to the guards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// `.` or `|`: the name after it belongs to the operand before it.
    Link,
    /// `not`, which may be the first half of `not in`.
    Not,
    Name,
    Other,
}

/// Guards every expression in a text that has text around its expressions. It finds them the way
/// the engine's lexer does; statements have been refused before.
fn guard_text(text: &str) -> Result<String, TemplateError> {
    let (mut out, mut rest, mut copies) = (String::with_capacity(text.len()), text, 0);
    loop {
        let starts = [rest.find("{{"), rest.find("{#")];
        let Some(start) = starts.into_iter().flatten().min() else {
            out.push_str(rest);
            return Ok(out);
        };
        let mark = if rest[start + 2..].starts_with(['-', '+']) { 3 } else { 2 };
        let (before, inside) = rest.split_at(start + mark);
        out.push_str(before);
        let taken = if before[start..].starts_with("{#") {
            let end = inside.find("#}").map_or(inside.len(), |end| end + 2);
            out.push_str(&inside[..end]);
            end
        } else {
            guard_code(inside, &mut out, &mut copies, true)?
        };
        rest = &inside[taken..];
    }
}

/// Copies one expression to `out`, with a guard around what could make much out of little, and
/// gives its length in bytes. With `in_braces` it ends after the `}}` that closes it.
///
/// A guard is a filter put behind an operand, where it binds to the last primary expression. For
/// `*` this is enough: whatever else its left side may be made of (`/`, `//`, `%`, `**`, another
/// `*`) gives numbers only, and so does a right side of several parts (`**`). For `in`, a left
/// side of several parts with a plain last one is never a list. Anything this does not understand
/// stays as it is or becomes a syntax error; no operator passes without its guard.
fn guard_code(
    code: &str,
    out: &mut String,
    copies: &mut usize,
    in_braces: bool,
) -> Result<usize, TemplateError> {
    let bytes = code.as_bytes();
    let (mut at, mut copied) = (0, 0);
    // The open brackets, each with the `:` seen in it.
    let mut open: Vec<(u8, usize)> = Vec::new();
    // The right sides of `*` that are still open: at which depth, and whether begun.
    let mut factors: Vec<(usize, bool)> = Vec::new();
    let mut previous = Token::Other;
    let mut not_at = None;
    while let Some(&byte) = bytes.get(at) {
        if byte.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        let rest = &bytes[at..];
        let signed = matches!(byte, b'-' | b'+') && rest[1..].starts_with(b"}}");
        let ends = in_braces && open.is_empty() && (signed || rest.starts_with(b"}}"));
        let start = at;
        at += match byte {
            _ if ends => 2 + usize::from(signed),
            b'\'' | b'"' => string_bytes(rest),
            b'0'..=b'9' => number_bytes(rest),
            b'/' | b'*' if rest.get(1) == Some(&byte) => 2,
            byte if is_name(byte) && !byte.is_ascii_digit() => {
                rest.iter().take_while(|&&byte| is_name(byte)).count()
            }
            _ => 1,
        };
        let word = &bytes[start..at];
        let linked = previous == Token::Link;
        let is_word = is_name(byte) && !byte.is_ascii_digit();
        // The right side of a `*` ends before this token when it cannot belong to it.
        if let Some(&mut (depth, ref mut begun)) = factors.last_mut()
            && depth == open.len()
        {
            let over = match byte {
                _ if ends => true,
                b'-' => *begun,
                b'.' | b'|' | b'(' | b'[' | b'{' | b'\'' | b'"' | b'0'..=b'9' => false,
                _ if is_word => *begun && !linked,
                _ => true,
            };
            *begun |= byte != b'-';
            if over {
                if word == b"is" {
                    return Err(TemplateError::new("a test beside * needs parentheses"));
                }
                factors.pop();
                insert(code, out, &mut copied, start, NUMBER_GUARD);
            }
        }
        let mut token = if is_word { Token::Name } else { Token::Other };
        match byte {
            _ if ends => {
                out.push_str(&code[copied..at]);
                return Ok(at);
            }
            b'*' if word == b"*" => {
                insert(code, out, &mut copied, start, NUMBER_GUARD);
                factors.push((open.len(), false));
            }
            b'~' => {
                return Err(TemplateError::new(
                    "~ is not allowed: write {{ a }}{{ b }} or [a, b] | join",
                ));
            }
            b'+' | b':' => {
                *copies += 1;
                if *copies > COPIES_MAX {
                    return Err(TemplateError::new(format_args!(
                        "more than {COPIES_MAX} + and : in one string"
                    )));
                }
                if let (b':', Some((b'[', colons))) = (byte, open.last_mut()) {
                    *colons += 1;
                    if *colons > 1 {
                        return Err(TemplateError::new("a slice with a step is not allowed"));
                    }
                }
            }
            b'(' | b'[' | b'{' => open.push((byte, 0)),
            b')' | b']' | b'}' => {
                open.pop().ok_or_else(|| {
                    TemplateError::new(format_args!("a closed bracket is not open in {code:?}"))
                })?;
            }
            b'.' | b'|' => token = Token::Link,
            _ if word == b"not" && !linked => {
                not_at = Some(start);
                token = Token::Not;
            }
            _ if word == b"in" && !linked => {
                let before = not_at.filter(|_| previous == Token::Not).unwrap_or(start);
                insert(code, out, &mut copied, before, PLAIN_GUARD);
            }
            _ => {}
        }
        previous = token;
    }
    if factors.last().is_some_and(|&(depth, _)| depth == open.len()) {
        insert(code, out, &mut copied, at, NUMBER_GUARD);
    }
    out.push_str(&code[copied..]);
    Ok(code.len())
}

/// Copies what is before `at` and puts the guard there.
fn insert(code: &str, out: &mut String, copied: &mut usize, at: usize, guard: &str) {
    // Only in what is a syntax error anyway (`2 * not in`) has more been copied already.
    if at >= *copied {
        out.push_str(&code[*copied..at]);
        *copied = at;
    }
    out.push_str(guard);
    out.push(' ');
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Length of the digits at the beginning, with their exponent; a fraction is a token of its own.
fn number_bytes(rest: &[u8]) -> usize {
    let digits = |from: usize| rest[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let end = digits(0);
    let sign = match rest[end..] {
        [b'e' | b'E', b'+' | b'-', ..] => 1,
        [b'e' | b'E', ..] => 0,
        _ => return end,
    };
    match digits(end + 1 + sign) {
        0 => end,
        exponent => end + 1 + sign + exponent,
    }
}

/// Length of the string literal at the beginning, quotes included.
fn string_bytes(rest: &[u8]) -> usize {
    let mut escaped = false;
    for (at, &byte) in rest.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            byte if byte == rest[0] => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

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
fn add_filters(environment: &mut Environment<'static>) {
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
    let map = TemplateValue::from_function(filters::map);
    environment.add_filter(
        "map",
        move |state: &State<'_, '_>, args: Rest<TemplateValue>| -> Result<TemplateValue, Error> {
            // With a filter's name or a default, each element could become a large value.
            let attribute_only = match &**args {
                [_, named] if named.is_kwargs() => Kwargs::try_from(named.clone())
                    .is_ok_and(|named| named.has("attribute") && !named.has("default")),
                _ => false,
            };
            if !attribute_only {
                return Err(invalid("map takes attribute=... and nothing else"));
            }
            charge_parts(state, &args)?;
            map.call(state, &args)
        },
    );
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
fn add_tests(environment: &mut Environment<'static>) {
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

#[cfg(test)]
mod tests {
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
}
