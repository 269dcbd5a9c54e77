//! Checks templates before anything is stored: what is known to fail is refused.

use serde_json::Value;

use super::guards::{guard_code, guard_text};
use super::names::{Names, Reference, find};
use super::{TemplateError, Templates, is_template, quoted, refuse_statements, single_expression};

/// What a step's templates may name.
pub(crate) trait Steps {
    /// Whether the workflow has a step with this id.
    fn exists(&self, id: &str) -> bool;
    /// Whether that step is certain to be completed before the one whose templates are checked.
    fn comes_before(&self, id: &str) -> bool;
    /// An id that is no plain name and stands at the beginning of this code.
    fn unquoted(&self, code: &str) -> Option<&str>;
}

impl Templates {
    /// Checks every string in `value`; an error comes with the place of the string, as a path.
    pub(crate) fn check(
        &self,
        value: &Value,
        place: &str,
        steps: &dyn Steps,
    ) -> Result<(), (String, TemplateError)> {
        match value {
            Value::String(text) if is_template(text) => {
                self.check_text(text, steps).map_err(|error| (place.to_owned(), error))
            }
            Value::Array(items) => items
                .iter()
                .enumerate()
                .try_for_each(|(at, item)| self.check(item, &format!("{place}[{at}]"), steps)),
            Value::Object(fields) => fields
                .iter()
                .try_for_each(|(name, field)| self.check(field, &format!("{place}.{name}"), steps)),
            _ => Ok(()),
        }
    }

    fn check_text(&self, text: &str, steps: &dyn Steps) -> Result<(), TemplateError> {
        let mut names = Names::default();
        let found = self.parse(text, &mut names).map_err(|error| {
            // An id in dots may be what does not parse.
            let dotted = text.match_indices("steps.").map(|(at, dots)| &text[at + dots.len()..]);
            let unquoted = dotted.filter_map(|code| steps.unquoted(code)).next();
            match unquoted {
                Some(id) => TemplateError::new(format_args!("{}; {}", error.text, in_quotes(id))),
                None => error,
            }
        })?;
        found.iter().try_for_each(|reference| check_reference(reference, steps))
    }

    /// Adds what a text names to `names`, and gives the places where it names steps. Everything
    /// is done that is done before rendering, so that nothing but a value can fail there.
    fn parse<'t>(
        &self,
        text: &'t str,
        names: &mut Names,
    ) -> Result<Vec<Reference<'t>>, TemplateError> {
        refuse_statements(text)?;
        let failed = |error| TemplateError::new(format_args!("{error} in {}", quoted(text)));
        let Some(code) = single_expression(text) else {
            let guarded = guard_text(text)?;
            let mut found = Vec::new();
            for code in guarded.codes {
                found.extend(find(code, names)?);
            }
            self.0.template_from_str(&guarded.text).map_err(failed)?;
            return Ok(found);
        };
        let mut guarded = String::new();
        guard_code(code, &mut guarded, &mut 0, false)?;
        let found = find(code, names)?;
        self.0.compile_expression(&guarded).map_err(failed)?;
        Ok(found)
    }

    /// What the templates in `value` name; what does not parse names nothing.
    pub fn names(&self, value: &Value) -> Names {
        let mut names = Names::default();
        self.add_names(value, &mut names);
        names
    }

    fn add_names(&self, value: &Value, names: &mut Names) {
        match value {
            Value::String(text) if is_template(text) => {
                // Rendering says what is wrong with it.
                let _ = self.parse(text, names);
            }
            Value::Array(items) => items.iter().for_each(|item| self.add_names(item, names)),
            Value::Object(fields) => {
                fields.values().for_each(|field| self.add_names(field, names));
            }
            _ => {}
        }
    }
}

fn check_reference(reference: &Reference<'_>, steps: &dyn Steps) -> Result<(), TemplateError> {
    let id = &reference.step;
    if let Some(unquoted) = reference.dotted.and_then(|code| steps.unquoted(code))
        && (!steps.exists(id) || unquoted[id.len()..].starts_with('-'))
    {
        return Err(TemplateError::new(format_args!(
            "steps.{unquoted} is not read as one name; {}",
            in_quotes(unquoted)
        )));
    }
    if !steps.exists(id) {
        return Err(TemplateError::new(format_args!("it names {id:?}, which is no step")));
    }
    if !steps.comes_before(id) {
        return Err(TemplateError::new(format_args!(
            "it names {id:?}, which need not be completed by then: let the step depend on it"
        )));
    }
    Ok(())
}

fn in_quotes(id: &str) -> String {
    let quoted = id.replace('\\', r"\\").replace('\'', r"\'");
    format!("write steps['{quoted}'] for it")
}
