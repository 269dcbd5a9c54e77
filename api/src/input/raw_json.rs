//! JSON that clients send and this program stores and gives back: inputs, metadata.
//!
//! A value is kept as text, without building a tree. Invariants: the text is compact, so that it can
//! stand in a line of `events.jsonl`; every JSON reader takes it. serde_json skips over raw values
//! without a look at nesting, lone surrogates or the size of numbers, so this file checks them.

use std::borrow::Cow;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use shiioo_actors::domain::json::Json;

use crate::input::values::VALUE_DEPTH_MAX;

/// Longest integer that is surely within the range of a 64-bit float.
const SAFE_DIGITS_MAX: usize = 300;

/// Any JSON value, as compact text.
#[derive(Debug, Clone)]
pub(crate) struct RawJson(pub(crate) Json);

impl<'de> Deserialize<'de> for RawJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        match compact(raw.get()).map_err(D::Error::custom)? {
            Cow::Borrowed(_) => Ok(Self(Json::from_raw(raw))),
            Cow::Owned(text) => RawValue::from_string(text)
                .map(|raw| Self(Json::from_raw(&raw)))
                .map_err(D::Error::custom),
        }
    }
}

/// Checks a JSON text that serde_json has already walked over, and removes its white space.
fn compact(text: &str) -> Result<Cow<'_, str>, String> {
    let bytes = text.as_bytes();
    let mut squeezed = String::new();
    let (mut copied, mut at, mut depth) = (0, 0, 0_usize);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at = string_end(bytes, at)?,
            b'-' | b'0'..=b'9' => at = number_end(text, at)?,
            b' ' | b'\t' | b'\n' | b'\r' => {
                squeezed.push_str(&text[copied..at]);
                at += 1;
                copied = at;
            }
            b'{' | b'[' => {
                depth += 1;
                if depth > VALUE_DEPTH_MAX {
                    return Err(format!("is nested deeper than {VALUE_DEPTH_MAX} levels"));
                }
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            _ => at += 1,
        }
    }
    if copied == 0 {
        return Ok(Cow::Borrowed(text));
    }
    squeezed.push_str(&text[copied..]);
    Ok(Cow::Owned(squeezed))
}

/// Finds the index after the string that begins at `at`. Refuses halves of surrogate pairs.
fn string_end(bytes: &[u8], mut at: usize) -> Result<usize, String> {
    at += 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return Ok(at + 1),
            b'\\' => match escaped_unit(bytes, at) {
                Some(0xD800..=0xDBFF)
                    if matches!(escaped_unit(bytes, at + 6), Some(0xDC00..=0xDFFF)) =>
                {
                    at += 12;
                }
                Some(0xD800..=0xDFFF) => return Err("a lone surrogate is no character".into()),
                _ => at += 2,
            },
            _ => at += 1,
        }
    }
    Ok(at)
}

/// Reads the UTF-16 unit that is written as `\uXXXX` at `at`.
fn escaped_unit(bytes: &[u8], at: usize) -> Option<u16> {
    let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Finds the index after the number that begins at `at`. Refuses numbers that no float can hold.
fn number_end(text: &str, at: usize) -> Result<usize, String> {
    let rest = &text[at..];
    let length = rest
        .find(|c: char| !matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E'))
        .unwrap_or(rest.len());
    let number = &rest[..length];
    let doubtful = length > SAFE_DIGITS_MAX || number.contains(['e', 'E']);
    if doubtful && !number.parse::<f64>().is_ok_and(f64::is_finite) {
        return Err("a number is out of range".into());
    }
    Ok(at + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compacted(text: &str) -> Result<String, serde_json::Error> {
        serde_json::from_str::<RawJson>(text).map(|raw| raw.0.as_str().to_owned())
    }

    #[test]
    fn white_space_goes_and_everything_else_stays() {
        for (sent, kept) in [
            ("{}", "{}"),
            ("{ \"a b\" :\n [1 , 2.0,\t\"x\\\" y\\n\"] }\r\n", "{\"a b\":[1,2.0,\"x\\\" y\\n\"]}"),
            ("[1e3, -0, 12345678901234567890123]", "[1e3,-0,12345678901234567890123]"),
            ("\"\\ud83d\\ude00 \\\\u\"", "\"\\ud83d\\ude00 \\\\u\""),
            ("\"gr\u{fc}\u{df}e \"", "\"gr\u{fc}\u{df}e \""),
        ] {
            assert_eq!(compacted(sent).unwrap(), kept);
            let same: serde_json::Value = serde_json::from_str(kept).unwrap();
            assert_eq!(serde_json::from_str::<serde_json::Value>(sent).unwrap(), same);
        }
    }

    #[test]
    fn what_a_reader_would_choke_on_is_refused() {
        let deep =
            format!("{}{}", "[".repeat(VALUE_DEPTH_MAX + 1), "]".repeat(VALUE_DEPTH_MAX + 1));
        for bad in ["1e999", "[\"\\ud800\"]", "\"\\udc00x\"", "\"\\ud800\\u0041\"", &deep] {
            assert!(compacted(bad).is_err(), "{bad}");
        }
        assert!(compacted(&"9".repeat(400)).is_err());
        assert!(compacted(&deep[1..deep.len() - 1]).is_ok());
    }
}
