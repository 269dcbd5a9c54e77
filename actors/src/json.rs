//! JSON that is carried, not understood: bytes known to be one valid JSON text.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Deepest nesting of a value, levels of lists and maps.
pub const DEPTH_MAX: usize = 64;

/// How deep a value is nested: 0 for one that is no list and no map.
pub fn depth(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        serde_json::Value::Object(fields) => {
            1 + fields.values().map(depth).max().unwrap_or_default()
        }
        _ => 0,
    }
}

/// One JSON text, compact, in UTF-8. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Json(Arc<str>);

impl Json {
    /// The JSON text `null`.
    pub fn null() -> Self {
        Self("null".into())
    }

    /// Writes `value` as JSON.
    pub fn from_value(value: &serde_json::Value) -> Self {
        Self(value.to_string().into())
    }

    /// Parses the text again. What does not parse (it was checked when it came in) is `null`.
    pub fn to_value(&self) -> serde_json::Value {
        serde_json::from_str(&self.0).unwrap_or_default()
    }

    /// Takes a text that serde_json has just checked or written.
    pub fn from_raw(raw: &serde_json::value::RawValue) -> Self {
        Self(raw.get().into())
    }

    /// Takes a text that the caller has just composed of valid JSON.
    pub(crate) fn from_text(text: String) -> Self {
        Self(text.into())
    }

    /// The text, to be written into a larger JSON document without a second parse.
    pub fn to_raw(&self) -> Box<serde_json::value::RawValue> {
        serde_json::value::RawValue::from_string(self.0.to_string()).unwrap_or_default()
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
