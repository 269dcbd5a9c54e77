//! Writes the tenant's event log: one JSON object a line, `seq` 1, 2, 3, ... without gaps.
//!
//! The last field of a line is its checksum, `"crc32":"<8 hexadecimal digits>"`: of everything before
//! the comma in front of it. Lines that came of commands of version 1 have none.

use std::fmt::Write as _;

use super::{EventSpan, TenantState};
use crate::command::Cause;
use crate::domain::ids::RunId;
use crate::domain::tenant::{TenantRecord, TenantStatus};

/// One event's fields behind its type: JSON written piece by piece.
pub(super) struct Fields(String);

impl Fields {
    pub(super) fn new(event_type: &str) -> Self {
        let mut text = String::with_capacity(128);
        text.push_str(r#"{"type":""#);
        text.push_str(event_type);
        text.push('"');
        Self(text)
    }

    /// A field with a text.
    pub(super) fn text(mut self, name: &str, value: &str) -> Self {
        self.name(name);
        self.0.push_str(&quoted(value));
        self
    }

    /// A field with a text or `null`.
    pub(super) fn optional(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.text(name, value),
            None => self.json(name, "null"),
        }
    }

    /// A field with a JSON text.
    pub(super) fn json(mut self, name: &str, value: &str) -> Self {
        self.name(name);
        self.0.push_str(value);
        self
    }

    /// A field with a number.
    pub(super) fn number(mut self, name: &str, value: u64) -> Self {
        self.name(name);
        // Writing to a String cannot fail.
        let _ = write!(self.0, "{value}");
        self
    }

    fn name(&mut self, name: &str) {
        self.0.push_str(",\"");
        self.0.push_str(name);
        self.0.push_str("\":");
    }
}

fn quoted(text: &str) -> String {
    // Strings have no way to fail to serialise.
    serde_json::to_string(text).unwrap_or_default()
}

impl TenantState {
    /// Writes an event of a run; the run remembers where it is.
    pub(super) fn run_event(&mut self, run: RunId, fields: Fields) {
        let span = self.write_event(Some(run), fields);
        if let Some(run) = self.runs.get_mut(&run) {
            run.events.push(span);
        }
    }

    /// Writes an `audit` event, if the tenant wants them and a client is behind the command.
    pub(super) fn audit(
        &mut self,
        cause: Option<&Cause>,
        action: &str,
        resource: &str,
        run: Option<RunId>,
    ) {
        let wanted =
            self.meta.record.as_ref().is_some_and(|record| record.settings.enable_audit_logging);
        let Some(cause) = cause.filter(|_| wanted) else { return };
        let fields = Fields::new("audit")
            .text("who", &cause.who)
            .text("action", action)
            .text("resource", resource)
            .text("request_id", &cause.request_id)
            .text("outcome", "ok");
        match run {
            Some(run) => self.run_event(run, fields),
            None => {
                self.write_event(None, fields);
            }
        }
    }

    /// Writes what group 0 changed about the tenant.
    pub(super) fn tenant_event(&mut self, before: Option<&TenantRecord>, after: &TenantRecord) {
        let event_type = match before.map(|before| before.status) {
            None => "tenant_created",
            Some(before) if before == after.status => "tenant_updated",
            Some(_) => match after.status {
                TenantStatus::Active => "tenant_activated",
                TenantStatus::Suspended => "tenant_suspended",
                TenantStatus::Disabled => "tenant_disabled",
            },
        };
        let fields = Fields::new(event_type)
            .text("name", &after.name)
            .text("status", after.status.name())
            .number("version", self.meta.version);
        self.write_event(None, fields);
    }

    fn write_event(&mut self, run: Option<RunId>, fields: Fields) -> EventSpan {
        let seq = self.meta.next_event_seq;
        let mut line = String::with_capacity(fields.0.len() + 160);
        let run = run.map_or_else(|| "null".to_owned(), |run| format!("\"{run}\""));
        // Writing to a String cannot fail.
        let _ = writeln!(
            line,
            r#"{{"id":"{seq}","seq":{seq},"run_id":{run},"timestamp":"{}","event_type":{}}}}}"#,
            self.meta.last_at, fields.0,
        );
        if self.checks_events {
            seal(&mut line);
        }
        let span = EventSpan::new(self.meta.events_bytes, line.len(), self.checks_events);
        self.meta.next_event_seq += 1;
        self.meta.events_bytes += line.len() as u64;
        self.events.extend_from_slice(line.as_bytes());
        span
    }
}

/// What stands before the digits of a checksum.
const SEAL_BEFORE: &str = ",\"crc32\":\"";
/// What stands behind them.
const SEAL_BEHIND: &str = "\"}\n";
const SEAL_DIGITS: usize = 8;

/// Gives a line its checksum.
fn seal(line: &mut String) {
    line.truncate(line.len() - "}\n".len());
    let crc = crc32fast::hash(line.as_bytes());
    // Writing to a String cannot fail.
    let _ = write!(line, "{SEAL_BEFORE}{crc:08x}{SEAL_BEHIND}");
}

/// The event that a line holds, without its checksum and the line's end; `None` when the line is not
/// as it was written.
pub fn checked_event(line: &[u8], span: EventSpan) -> Option<String> {
    let text = std::str::from_utf8(line).ok()?;
    if !span.is_checked() {
        return text.strip_suffix('\n').map(str::to_owned);
    }
    let sealed = text.strip_suffix(SEAL_BEHIND)?;
    let (rest, digits) = sealed.split_at_checked(sealed.len().checked_sub(SEAL_DIGITS)?)?;
    let event = rest.strip_suffix(SEAL_BEFORE)?;
    let is_whole = format!("{:08x}", crc32fast::hash(event.as_bytes())) == digits;
    is_whole.then(|| format!("{event}}}"))
}

/// Tells whether a line was written with a checksum, also where a byte of that is another now.
fn had_seal(line: &[u8]) -> bool {
    let behind = line.len().checked_sub(SEAL_BEHIND.len());
    let before = behind.and_then(|at| at.checked_sub(SEAL_DIGITS + SEAL_BEFORE.len()));
    let (Some(before), Some(behind)) = (before, behind) else { return false };
    let around = line[before..].iter().take(SEAL_BEFORE.len()).chain(&line[behind..]);
    let other = around.zip(SEAL_BEFORE.bytes().chain(SEAL_BEHIND.bytes()));
    other.filter(|(here, written)| **here != *written).count() <= SEAL_BYTES_ROTTEN_MAX
}

/// Bytes around the digits of a checksum that may be others where one still stood.
const SEAL_BYTES_ROTTEN_MAX: usize = 2;

/// Checks the whole lines at the beginning of `bytes`, and returns how many bytes they are. Once a line
/// with a checksum was seen, `is_sealed`, all later ones have to have one.
///
/// # Errors
/// Where the line begins that is not as it was written.
pub fn check_lines(bytes: &[u8], is_sealed: &mut bool) -> Result<usize, usize> {
    let mut at = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        if !line.ends_with(b"\n") {
            break;
        }
        read_line(line, is_sealed).ok_or(at)?;
        at += line.len();
    }
    Ok(at)
}

/// Reads the event of a whole line; `None` when the line is not as it was written. Once a line with a
/// checksum was read, `is_sealed`, all later ones have to have one.
pub(super) fn read_line(line: &[u8], is_sealed: &mut bool) -> Option<String> {
    let event = |is_checked| checked_event(line, EventSpan::new(0, line.len(), is_checked));
    if let Some(sealed) = event(true) {
        *is_sealed = true;
        return Some(sealed);
    }
    if *is_sealed || had_seal(line) {
        return None;
    }
    // A line of the first version says nothing of itself but that it is JSON.
    event(false).filter(|event| serde_json::from_str::<serde::de::IgnoredAny>(event).is_ok())
}

/// Reads the number of the event whose line begins with `line`.
pub(super) fn seq_of_line(line: &[u8]) -> Option<u64> {
    let digits = line.strip_prefix(br#"{"id":""#)?;
    let end = digits.iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(fields: &str) -> String {
        let mut line = format!("{{\"id\":\"1\",\"seq\":1,\"event_type\":{}}}\n", quoted(fields));
        seal(&mut line);
        line
    }

    #[test]
    fn a_line_of_the_first_version_is_served_as_it_stands() {
        let old = b"{\"id\":\"1\"}\n";
        let read = |len, is_checked| checked_event(old, EventSpan::new(0, len, is_checked));
        assert_eq!(read(old.len(), false).as_deref(), Some("{\"id\":\"1\"}"));
        assert_eq!(read(old.len(), true), None, "it should have a checksum");
    }

    #[test]
    fn lines_are_checked_up_to_the_last_whole_one() {
        let (old, new) = ("{\"id\":\"1\"}\n", line("x"));
        let check = |text: &str, was_sealed| {
            let mut is_sealed = was_sealed;
            (check_lines(text.as_bytes(), &mut is_sealed), is_sealed)
        };
        assert_eq!(check("", false), (Ok(0), false));
        assert_eq!(check(&format!("{old}{new}{{\"id"), false), (Ok(old.len() + new.len()), true));
        assert_eq!(check(&format!("{old}{{]\n"), false), (Err(old.len()), false), "no JSON");
        // Rot in the checksum's own name must not make the line one of the first version.
        let rotten = new.replace("crc32", "crc33");
        assert_eq!(check(&format!("{new}{rotten}"), false), (Err(new.len()), true));
        assert_eq!(check(&rotten, true), (Err(0), true));
        // Nor in the first line of all.
        assert_eq!(check(&rotten, false), (Err(0), false));
        assert_eq!(check(&new.replace("\"x\"", "\"y\""), false), (Err(0), false));
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None, ..ProptestConfig::default()
        })]

        #[test]
        fn any_flipped_bit_of_an_event_is_noticed(text in ".{0,60}") {
            let line = line(&text);
            let span = EventSpan::new(7, line.len(), true);
            let event = checked_event(line.as_bytes(), span).unwrap();
            prop_assert!(serde_json::from_str::<serde_json::Value>(&event).is_ok());
            prop_assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok());
            for bit in 0..line.len() * 8 {
                let mut bytes = line.clone().into_bytes();
                bytes[bit / 8] ^= 1 << (bit % 8);
                prop_assert_eq!(checked_event(&bytes, span), None, "bit {}", bit);
                // Of a line end that rots there is one line less.
                prop_assert!(check_lines(&bytes, &mut false) != Ok(bytes.len()), "bit {}", bit);
            }
        }

        #[test]
        fn any_bytes_are_no_event_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(checked_event(&bytes, EventSpan::new(0, bytes.len(), true)), None);
            let _ = checked_event(&bytes, EventSpan::new(0, bytes.len(), false));
        }
    }
}
