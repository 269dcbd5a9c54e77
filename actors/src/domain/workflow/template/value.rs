//! Takes what an expression gave apart into JSON, exactly: what JSON cannot hold is an error, and
//! never null or another number.

use minijinja::Value as TemplateValue;
use minijinja::value::ValueKind;
use serde_json::{Map, Number, Value};

use super::TemplateError;
use super::bounded::Counted;
use crate::domain::json::DEPTH_MAX;

/// Writes a value as JSON, whose text is charged to `size`.
pub(super) fn to_json(
    value: &TemplateValue,
    size: &mut Counted,
    depth: usize,
) -> Result<Value, TemplateError> {
    let kind = value.kind();
    let nests = matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map);
    if nests && depth >= DEPTH_MAX {
        return Err(TemplateError::new(format_args!(
            "the result is nested deeper than {DEPTH_MAX} levels"
        )));
    }
    let json = match kind {
        ValueKind::None => Value::Null,
        ValueKind::Bool => Value::Bool(value.is_true()),
        ValueKind::Number => Value::Number(number(value)?),
        ValueKind::String => Value::String(value.as_str().unwrap_or_default().to_owned()),
        ValueKind::Seq | ValueKind::Iterable => {
            size.take(2)?;
            let mut items = Vec::new();
            for item in value.try_iter().map_err(TemplateError::new)? {
                size.take(usize::from(!items.is_empty()))?;
                items.push(to_json(&item, size, depth + 1)?);
            }
            return Ok(Value::Array(items));
        }
        ValueKind::Map => {
            size.take(2)?;
            let mut fields = Map::new();
            for name in value.try_iter().map_err(TemplateError::new)? {
                let field = value.get_item(&name).map_err(TemplateError::new)?;
                let name = key(&name)?;
                size.take(usize::from(!fields.is_empty()) + 1)?;
                size.write(&Value::String(name.clone()))?;
                fields.insert(name, to_json(&field, size, depth + 1)?);
            }
            return Ok(Value::Object(fields));
        }
        ValueKind::Undefined => {
            return Err(TemplateError::new("a value in the result is not there"));
        }
        kind => {
            // An invalid value holds the error that made it so.
            let error = value.clone().try_iter().err().map(|error| error.to_string());
            return Err(TemplateError::new(
                error.unwrap_or_else(|| format!("the result holds a {kind}, which is no JSON")),
            ));
        }
    };
    size.write(&json)?;
    Ok(json)
}

fn number(value: &TemplateValue) -> Result<Number, TemplateError> {
    if value.is_integer() {
        let signed = i64::try_from(value.clone()).map(Number::from);
        return signed.or_else(|_| u64::try_from(value.clone()).map(Number::from)).map_err(|_| {
            TemplateError::new(format_args!(
                "{value} is no integer of 64 bits: make it a text with | string"
            ))
        });
    }
    let float = f64::try_from(value.clone()).ok();
    float.and_then(Number::from_f64).ok_or_else(|| {
        TemplateError::new(format_args!("the number {value} cannot be written as JSON"))
    })
}

/// The name of a field.
fn key(value: &TemplateValue) -> Result<String, TemplateError> {
    match value.kind() {
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_owned()),
        ValueKind::Number => Ok(value.to_string()),
        ValueKind::Bool => Ok(value.is_true().to_string()),
        kind => Err(TemplateError::new(format_args!("a {kind} cannot be the name of a field"))),
    }
}
