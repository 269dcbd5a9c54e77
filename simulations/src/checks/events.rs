//! `events.jsonl` is valid to the last byte: lines of JSON, numbered 1, 2, 3, ...

use serde_json::Value;

use super::{Checked, Violation};
use crate::ensure;

/// Parses the whole log of a tenant.
///
/// # Errors
/// When a byte of it is not what it should be.
pub fn parse(path: &str, bytes: &[u8]) -> Checked<Vec<Value>> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Violation(format!("{path} is no text: {error}")))?;
    ensure!(text.is_empty() || text.ends_with('\n'), "{path} ends in half a line");
    let mut events = Vec::new();
    for (line, expected) in text.lines().zip(1_u64..) {
        let event: Value = serde_json::from_str(line)
            .map_err(|error| Violation(format!("{path}: {error} in line {expected}: {line}")))?;
        ensure!(event["seq"] == expected, "{path}: {expected} should be the number of {line}");
        events.push(event);
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_logs_pass_and_others_do_not() {
        assert_eq!(parse("a", b"{\"seq\":1}\n{\"seq\":2}\n").map(|events| events.len()), Ok(2));
        for broken in ["{\"seq\":1}", "{\"seq\":1}\n{\"s", "{\"seq\":2}\n", "{\"seq\":1}\n\0\n"] {
            assert!(parse("a", broken.as_bytes()).is_err(), "{broken}");
        }
    }
}
