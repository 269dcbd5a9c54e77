//! Checks JSON bodies for values that readers disagree on.
//!
//! Some readers round integers beyond 64 bits; some cut deep nesting, or overflow their stack. Both
//! are refused in every field, known or not: nothing is changed silently, here or at the next reader.

use std::fmt::Write as _;

/// Deepest nesting of a value, levels.
pub(crate) const VALUE_DEPTH_MAX: usize = 64;
/// Deepest nesting of a whole body: a value may stand some levels deep in what the API defines.
const BODY_DEPTH_MAX: usize = VALUE_DEPTH_MAX + 16;
/// Digits of an integer that is surely within 64 bits.
const SAFE_DIGITS_MAX: usize = 18;
/// Longest part of a body that is repeated in a refusal, characters.
const SHOWN_CHARS_MAX: usize = 100;

/// A value that is refused, and the path to it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unfit {
    /// As in `steps[0].action`; empty for the body itself.
    pub(crate) field: String,
    /// The reason, as a sentence without its subject.
    pub(crate) why: String,
}

/// An object or array around the present value.
enum Around {
    /// Begin and end of the key of the present member, quotes included.
    Object(usize, usize),
    /// The index of the present element.
    Array(usize),
}

/// Checks a text that is known to be one JSON document.
pub(crate) fn check(text: &str) -> Result<(), Unfit> {
    let bytes = text.as_bytes();
    let mut around: Vec<Around> = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => {
                let end = string_end(bytes, at);
                // A string before a colon is a key; what is a value is forgotten at the comma.
                if let Some(Around::Object(from, to)) = around.last_mut()
                    && *from == *to
                {
                    (*from, *to) = (at, end);
                }
                at = end;
                continue;
            }
            b'-' | b'0'..=b'9' => {
                let length = number_length(&bytes[at..]);
                let number = &text[at..at + length];
                if !fits(number) {
                    let shown: String = number.chars().take(SHOWN_CHARS_MAX).collect();
                    let why = format!("is {shown}; integers are taken up to 64 bits");
                    return Err(Unfit { field: path(text, &around), why });
                }
                at += length;
                continue;
            }
            b'{' | b'[' => {
                if around.len() == BODY_DEPTH_MAX {
                    let why = format!("is nested deeper than {VALUE_DEPTH_MAX} levels");
                    return Err(Unfit { field: path(text, &around[..1]), why });
                }
                around.push(if byte == b'{' { Around::Object(0, 0) } else { Around::Array(0) });
            }
            b'}' | b']' => drop(around.pop()),
            b',' => match around.last_mut() {
                Some(Around::Object(from, to)) => (*from, *to) = (0, 0),
                Some(Around::Array(index)) => *index += 1,
                None => {}
            },
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// Finds the index after the string that begins at `at`.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    at += 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn number_length(bytes: &[u8]) -> usize {
    let of_a_number = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    bytes.iter().position(|byte| !of_a_number(byte)).unwrap_or(bytes.len())
}

/// Tells whether a number has a fraction or an exponent, or fits into 64 bits, signed or not.
fn fits(number: &str) -> bool {
    number.len() <= SAFE_DIGITS_MAX
        || number.contains(['.', 'e', 'E'])
        || number.parse::<u64>().is_ok()
        || number.parse::<i64>().is_ok()
}

/// Writes the path of a value as serde_path_to_error does.
fn path(text: &str, around: &[Around]) -> String {
    let mut path = String::new();
    for around in around {
        // Writing to a String cannot fail.
        let _ = match around {
            Around::Object(from, to) => {
                let key: String = serde_json::from_str(&text[*from..*to]).unwrap_or_default();
                let key: String = key.chars().take(SHOWN_CHARS_MAX).collect();
                let dot = if path.is_empty() { "" } else { "." };
                write!(path, "{dot}{key}")
            }
            Around::Array(index) => write!(path, "[{index}]"),
        };
    }
    path
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unfit(text: &str) -> Option<String> {
        assert!(serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(), "{text}");
        check(text).err().map(|unfit| unfit.field)
    }

    fn nested(levels: usize) -> String {
        format!("{}{}", "[".repeat(levels), "]".repeat(levels))
    }

    #[test]
    fn integers_end_at_64_bits_and_the_field_is_named() {
        for fit in [
            "18446744073709551615",
            "-9223372036854775808",
            "[1.5, -0, 1e300, 123456789012345678901234567890.5, \"99999999999999999999\"]",
            r#"{"99999999999999999999": "\"99999999999999999999", "a": "\\"}"#,
        ] {
            assert_eq!(unfit(fit), None, "{fit}");
        }
        for (text, field) in [
            ("18446744073709551616", ""),
            ("-9223372036854775809", ""),
            (r#"{"a": 18446744073709551616}"#, "a"),
            (
                r#"{"x": {}, "a": {"b": "c", "d,\"": [1, {"e": -99999999999999999999}]}}"#,
                "a.d,\"[1].e",
            ),
            (r#"{"a": "b", "c": [[0], 99999999999999999999]}"#, "c[1]"),
        ] {
            assert_eq!(unfit(text).as_deref(), Some(field), "{text}");
        }
    }

    #[test]
    fn nesting_ends_and_the_field_is_named() {
        assert_eq!(unfit(&format!("{{\"input\":{}}}", nested(BODY_DEPTH_MAX - 1))), None);
        let deep = format!("{{\"x\":1,\"input\":{}}}", nested(BODY_DEPTH_MAX));
        assert_eq!(unfit(&deep).as_deref(), Some("input"));
        let deeper = format!("{{\"ignored\":{}}}", nested(200_000));
        assert_eq!(unfit(&deeper).as_deref(), Some("ignored"));
    }

    proptest! {
        #[test]
        fn any_text_is_looked_through(text: String) {
            let _ = check(&text);
        }

        #[test]
        fn what_looks_like_json_is_looked_through(text in r#"[\[\]{}",:\\0-9.eE+u a-]{0,64}"#) {
            let _ = check(&text);
        }
    }
}
