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

/// Whether a JSON text can be read without a loss: not when it is nested deeper than [`DEPTH_MAX`],
/// or holds an integer beyond 64 bits, which would be rounded. What is no JSON passes.
///
/// # Errors
/// Says what would be lost.
pub fn check_exact(text: &[u8]) -> Result<(), String> {
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(&byte) = text.get(at) {
        let rest = &text[at..];
        at += match byte {
            b'"' => string_bytes(rest),
            b'-' | b'0'..=b'9' => {
                let is_part =
                    |byte: &&u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
                let len = rest.iter().take_while(is_part).count();
                if is_too_large(&rest[..len]) {
                    return Err(format!(
                        "the integer {} does not fit 64 bits",
                        String::from_utf8_lossy(&rest[..len.min(40)])
                    ));
                }
                len
            }
            b'[' | b'{' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(format!("it is nested deeper than {DEPTH_MAX} levels"));
                }
                1
            }
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                1
            }
            _ => 1,
        };
    }
    Ok(())
}

/// Length of the string at the beginning, quotes included.
fn string_bytes(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

fn is_too_large(number: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(number) else { return false };
    let is_integer = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    is_integer && text.len() >= 19 && text.parse::<i64>().is_err() && text.parse::<u64>().is_err()
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_depth_is_that_of_the_deepest_item() {
        for (value, expected) in [
            (json!(null), 0),
            (json!("[["), 0),
            (json!([]), 1),
            (json!({}), 1),
            (json!({"a": 1}), 1),
            (json!([1, [2, [3]], [4]]), 3),
            (json!({"a": {"b": [1]}, "c": {}}), 3),
        ] {
            assert_eq!(depth(&value), expected, "{value}");
        }
    }

    #[test]
    fn a_text_is_carried_as_it_is() {
        let value = json!({"a": [1, "two"]});
        let json = Json::from_value(&value);
        assert_eq!((json.as_str(), json.to_value()), (r#"{"a":[1,"two"]}"#, value));
        assert_eq!(json.to_raw().get(), json.as_str());
        assert_eq!(Json::from_raw(&json.to_raw()), json);
        assert_eq!((Json::null().as_str(), format!("{json:?}").as_str()), ("null", json.as_str()));
    }

    #[test]
    fn what_would_be_lost_is_said() {
        let nested = |levels| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        for (text, said) in [
            ("18446744073709551615".to_owned(), None),
            ("[-9223372036854775808, 1e400, 0.1234567890123456789012]".to_owned(), None),
            (
                r#"{"99999999999999999999": "99999999999999999999 [[\\\" 99999999999999999999"}"#
                    .to_owned(),
                None,
            ),
            (nested(64), None),
            (r#"["[[[", [1]]"#.to_owned(), None),
            ("18446744073709551616".to_owned(), Some("64 bits")),
            (r#"{"a": [-9223372036854775809]}"#.to_owned(), Some("64 bits")),
            (nested(65), Some("64 levels")),
        ] {
            let found = check_exact(text.as_bytes()).err();
            assert_eq!(found.is_some(), said.is_some(), "{text}: {found:?}");
            assert!(found.unwrap_or_default().contains(said.unwrap_or_default()), "{text}");
        }
        for cut in ["\"", "\"\\", "[1, \"a", "-", ""] {
            assert_eq!(check_exact(cut.as_bytes()), Ok(()), "{cut}");
        }
    }
}
