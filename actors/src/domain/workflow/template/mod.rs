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
//! - No function of the template language exists, and only the filters of `filters`. Those
//!   that make new strings or lists draw on `WORK_BYTES_MAX`, which the filters of one string
//!   share, before they run or, where the size of the result is not known, while they write.
//! - `*` takes numbers only (it repeats strings and lists otherwise), `in` takes a plain value on
//!   its left (a list would be written out), `~` is refused (it writes lists out), a slice has no
//!   step, and `+` and `:` may stand `COPIES_MAX` times in a string: each may copy a string as
//!   long as everything in the context. `guards` sees to this before anything is compiled.
//!
//! - The values that templates name are parsed when they are named, each once for a run (`parsed`),
//!   and one render may name `TREES_BYTES_MAX` of them.
//!
//! The engine recurses over an expression, so its size and depth are bounded before the engine sees
//! it (`bounds`).
//!
//! Time is bounded for each string by `FUEL_INSTRUCTIONS_MAX`, and by how much it may have looked at
//! (`TOUCHED_BYTES_MAX`); and for a render by a deadline, which is looked at whenever a template
//! names something. One operator on the largest values takes a fraction of a second.

mod bounded;
mod bounds;
mod check;
mod context;
mod filters;
mod guards;
mod names;
mod parsed;
mod value;

#[cfg(test)]
mod overflow_tests;
#[cfg(test)]
mod tests;

use std::fmt;

use minijinja::{Environment, Error, UndefinedBehavior};
use serde_json::Value;

use bounded::{Bounded, Counted};
pub(crate) use check::Steps;
pub use context::{Context, Limits, Offer};
use guards::{guard_code, guard_text};
pub use names::Names;
pub use parsed::Parsed;

/// Instructions one string may cost.
const FUEL_INSTRUCTIONS_MAX: u64 = 100_000;
/// Longest rendered string, bytes.
const RENDERED_BYTES_MAX: usize = 1 << 20;
/// Most bytes the templates of one call may render together.
const CALL_BYTES_MAX: usize = 2 << 20;
/// Most template strings in one call.
const CALL_STRINGS_MAX: usize = 1_000;
/// Longest message of an error, characters.
const MESSAGE_CHARS_MAX: usize = 500;
/// Most of a template that an error quotes, characters.
const QUOTED_CHARS_MAX: usize = 200;

/// A template that cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template: {text}")]
pub struct TemplateError {
    text: String,
    /// Whether it only took too long, here and now.
    pub out_of_time: bool,
}

/// The template engine, set up once.
#[derive(Debug)]
pub struct Templates(Environment<'static>);

impl Default for Templates {
    fn default() -> Self {
        let mut environment = Environment::empty();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL_INSTRUCTIONS_MAX));
        filters::add_filters(&mut environment);
        filters::add_tests(&mut environment);
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

/// Whether a text has the marks of a template.
pub fn is_template(text: &str) -> bool {
    text.contains("{{") || text.contains("{%") || text.contains("{#")
}

impl TemplateError {
    fn new(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        let text = match message.char_indices().nth(MESSAGE_CHARS_MAX) {
            Some((end, _)) => format!("{}...", &message[..end]),
            None => message,
        };
        Self { text, out_of_time: false }
    }
}

impl Templates {
    /// Renders every string in `value` with the names in `context`.
    ///
    /// # Errors
    /// When a string is no valid template, names what is not there, or costs too much; and when
    /// all strings together cost too much.
    pub fn render(&self, value: Value, context: &Context) -> Result<Value, TemplateError> {
        self.render_within(value, context, &mut Budget::default())
    }

    fn render_within(
        &self,
        value: Value,
        context: &Context,
        budget: &mut Budget,
    ) -> Result<Value, TemplateError> {
        Ok(match value {
            Value::String(text) if is_template(&text) => {
                let rendered = self.render_text(&text, context, budget);
                // Running out of time shows as whatever was being done.
                rendered.map_err(|error| match context.is_over() {
                    true => TemplateError { out_of_time: true, ..too_slow() },
                    false => error,
                })?
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
        context: &Context,
        budget: &mut Budget,
    ) -> Result<Value, TemplateError> {
        budget.take_string()?;
        if context.is_over() {
            return Err(too_slow());
        }
        refuse_statements(text)?;
        let failed = |error: Error| TemplateError::new(format_args!("{error} in {}", quoted(text)));
        let Some(expression) = single_expression(text) else {
            let guarded = guard_text(text)?.text;
            let template = self.0.template_from_str(&guarded).map_err(failed)?;
            let mut out = Bounded::new(budget.string_bytes());
            let rendered = template.render_captured_to(context.names(), &mut out).map(drop);
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
        let value = compiled.eval(context.names()).map_err(failed)?;
        if value.is_undefined() {
            return Err(TemplateError::new(format_args!("{} is not there", quoted(expression))));
        }
        let mut size = Counted::new(budget.string_bytes());
        let json = value::to_json(&value, &mut size, 0)?;
        budget.bytes -= size.bytes();
        Ok(json)
    }
}

/// The beginning of a template, for an error.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS_MAX) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn refuse_statements(text: &str) -> Result<(), TemplateError> {
    if text.contains("{%") {
        return Err(TemplateError::new("statements ({% ... %}) are not allowed"));
    }
    Ok(())
}

fn too_slow() -> TemplateError {
    TemplateError::new("filling the templates in took too long, and was given up")
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
