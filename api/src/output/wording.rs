//! Translates serde's errors into words of JSON. serde names types of this program, and places by
//! line and column of a text that the client may not have written in lines.

use std::borrow::Cow;

/// Longest value that is repeated, characters.
const SHOWN_CHARS_MAX: usize = 100;

/// Translates the text of a serde error.
pub(crate) fn plain(error: &str) -> String {
    let text = error.rsplit_once(" at line ").map_or(error, |(text, _)| text);
    for kind in ["invalid type: ", "invalid value: ", "invalid length "] {
        if let Some((given, expected)) =
            text.strip_prefix(kind).and_then(|rest| rest.rsplit_once(", expected "))
        {
            let given = if kind.ends_with("length ") {
                format!("{given} elements")
            } else {
                plain_given(given)
            };
            return format!("must be {}, is {}", plain_expected(expected), shortened(&given));
        }
    }
    let named = |prefix: &str| text.strip_prefix(prefix).is_some_and(|rest| rest.ends_with('`'));
    if named("missing field `") {
        return "is required".to_owned();
    }
    if named("duplicate field `") {
        return "is given twice".to_owned();
    }
    if let Some((given, known)) =
        text.strip_prefix("unknown variant ").and_then(|rest| rest.split_once(", expected "))
    {
        let known = known.strip_prefix("one of ").unwrap_or(known).replace('`', "");
        return format!("must be one of {known}, is {}", shortened(given).replace('`', "\""));
    }
    text.to_owned()
}

fn plain_given(given: &str) -> String {
    match given {
        "map" | "struct variant" => "an object".to_owned(),
        "sequence" | "tuple variant" => "a list".to_owned(),
        "null" | "unit value" | "Option value" | "unit variant" => "null".to_owned(),
        _ => ["string ", "integer ", "floating point ", "boolean ", "character "]
            .iter()
            .find_map(|kind| given.strip_prefix(kind))
            .unwrap_or(given)
            .replace('`', ""),
    }
}

fn plain_expected(expected: &str) -> Cow<'_, str> {
    let is = |prefix: &str| expected.starts_with(prefix);
    Cow::Borrowed(match expected {
        "u8" | "u16" | "u32" | "u64" | "u128" | "usize" | "a nonzero u32" | "a nonzero u64" => {
            "a whole number, not negative"
        }
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a string" | "str" | "a borrowed string" | "a character" | "string or map" => "a string",
        "a boolean" | "bool" => "true or false",
        "a map" | "a JSON object" => "an object",
        "a sequence" => "a list",
        "unit" => "null",
        "any valid JSON value" | "any value" => "JSON",
        _ if is("struct ") || is("internally tagged enum") || is("adjacently tagged enum") => {
            "an object"
        }
        _ if is("enum ") || is("variant identifier") => "one of the names that stand for a choice",
        _ if is("tuple ") || is("a tuple") => "a list",
        _ if is("newtype ") => "another value",
        _ => expected,
    })
}

fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => Cow::Owned(format!("{}...", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(tag = "type", rename_all = "snake_case")]
    enum Tagged {
        A { _count: Option<u32> },
        B,
    }

    #[derive(Debug, Deserialize)]
    struct Whole {
        _text: Option<String>,
        _number: Option<f64>,
        _switch: Option<bool>,
        _list: Option<Vec<u8>>,
        _map: Option<std::collections::BTreeMap<String, String>>,
        _tagged: Option<Tagged>,
        _inner: Option<Box<Whole>>,
    }

    fn said(json: &str) -> String {
        plain(&serde_json::from_str::<Whole>(json).unwrap_err().to_string())
    }

    #[test]
    fn json_is_spoken_of_in_its_own_words() {
        for (json, text) in [
            (r#"{"_text":7}"#, "must be a string, is 7"),
            (r#"{"_text":{}}"#, "must be a string, is an object"),
            (r#"{"_number":"x"}"#, "must be a number, is \"x\""),
            (r#"{"_switch":null,"_number":[]}"#, "must be a number, is a list"),
            (r#"{"_switch":1.5}"#, "must be true or false, is 1.5"),
            (r#"{"_list":true}"#, "must be a list, is true"),
            (r#"{"_list":[-1]}"#, "must be a whole number, not negative, is -1"),
            (r#"{"_list":[null]}"#, "must be a whole number, not negative, is null"),
            (r#"{"_map":"x"}"#, "must be an object, is \"x\""),
            (r#"{"_inner":7}"#, "must be an object, is 7"),
            (r#"{"_tagged":7}"#, "must be an object, is 7"),
            (r#"{"_tagged":{}}"#, "is required"),
            (r#"{"_tagged":{"type":"c"}}"#, "must be one of a or b, is \"c\""),
            (r#"{"_text":"a","_text":"b"}"#, "is given twice"),
            (r#"{"_text":[", expected u8"]}"#, "must be a string, is a list"),
        ] {
            assert_eq!(said(json), text, "{json}");
        }
        let long = said(&format!("{{\"_number\":\"{}\"}}", "x".repeat(1000)));
        assert!(long.len() < 200, "{long}");
    }

    #[test]
    fn what_our_own_types_say_stays() {
        assert_eq!(plain("must be at most 7 at line 1 column 9"), "must be at most 7");
        assert_eq!(plain("is reserved"), "is reserved");
    }
}
