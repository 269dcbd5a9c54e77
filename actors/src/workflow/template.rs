//! Renders the strings of a step's action.
//!
//! Expressions and filters of the template language work, statements (loops, includes) do not.
//! Every rendering is limited in fuel and size. Only the leader renders, and what comes out is
//! recorded: `apply` never gets here.

use minijinja::{Environment, UndefinedBehavior, Value as TemplateValue};
use serde_json::Value;

/// Instructions one string may cost.
const FUEL_INSTRUCTIONS_MAX: u64 = 100_000;
/// Longest rendered string, bytes.
const RENDERED_BYTES_MAX: usize = 1 << 20;

/// A template that cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template: {0}")]
pub struct TemplateError(String);

/// The template engine, set up once.
#[derive(Debug)]
pub struct Templates(Environment<'static>);

impl Default for Templates {
    fn default() -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL_INSTRUCTIONS_MAX));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
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

impl Templates {
    /// Renders every string in `value` with the names in `context`.
    ///
    /// # Errors
    /// When a string is no valid template, names what is not there, or costs too much.
    pub fn render(&self, value: Value, context: &TemplateValue) -> Result<Value, TemplateError> {
        Ok(match value {
            Value::String(text) if is_template(&text) => self.render_text(&text, context)?,
            Value::Array(items) => {
                let items = items.into_iter().map(|item| self.render(item, context));
                Value::Array(items.collect::<Result<_, _>>()?)
            }
            Value::Object(fields) => {
                let fields = fields
                    .into_iter()
                    .map(|(name, field)| Ok((name, self.render(field, context)?)));
                Value::Object(fields.collect::<Result<_, TemplateError>>()?)
            }
            plain => plain,
        })
    }

    /// A string that is one expression keeps the value's type; any other becomes a string.
    fn render_text(&self, text: &str, context: &TemplateValue) -> Result<Value, TemplateError> {
        if text.contains("{%") {
            return Err(TemplateError("statements ({% ... %}) are not allowed".to_owned()));
        }
        let failed = |error: minijinja::Error| TemplateError(format!("{error} in {text:?}"));
        let Some(expression) = single_expression(text) else {
            let rendered = self.0.render_str(text, context).map_err(failed)?;
            return within_bounds(rendered).map(Value::String);
        };
        let value = self
            .0
            .compile_expression(expression)
            .and_then(|compiled| compiled.eval(context))
            .map_err(failed)?;
        if value.is_undefined() {
            return Err(TemplateError(format!("{expression:?} is not there")));
        }
        let value =
            serde_json::to_value(&value).map_err(|error| TemplateError(error.to_string()))?;
        within_bounds(value.to_string()).map(|_| value)
    }
}

fn within_bounds(rendered: String) -> Result<String, TemplateError> {
    if rendered.len() <= RENDERED_BYTES_MAX {
        Ok(rendered)
    } else {
        Err(TemplateError(format!("the result is longer than {RENDERED_BYTES_MAX} bytes")))
    }
}

/// What is between the braces of `{{ ... }}`, when the text is nothing else.
fn single_expression(text: &str) -> Option<&str> {
    let inner = text.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    (!inner.contains("{{") && !inner.contains("}}")).then(|| inner.trim_matches('-').trim())
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
}
