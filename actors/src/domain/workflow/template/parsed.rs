//! The values that templates have named lately, parsed: each once, for all steps of its run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use minijinja::{Error, ErrorKind, Value as TemplateValue};

use crate::domain::ids::RunId;
use crate::domain::json::Json;

/// Memory that parsed values are kept in when nobody uses them, bytes, for the whole node.
const KEPT_BYTES_MAX: usize = 64 << 20;
/// Memory that a parsed value takes at least, bytes: its place here included.
const VALUE_BYTES: usize = 256;
/// What an element of a list or a map takes, bytes.
const ELEMENT_BYTES: usize = 32;
/// What a list takes beside its elements, bytes.
const LIST_BYTES: usize = 96;
/// What a map takes beside its elements, bytes: its first node has room for eleven.
const MAP_BYTES: usize = 700;

/// Part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// Its input.
    Input,
    /// The output of a step.
    Step(u16),
}

type Key = (RunId, Part);
/// The value, once somebody has parsed it.
type Value = Arc<OnceLock<Result<TemplateValue, String>>>;

/// Parsed values.
#[derive(Debug, Default)]
pub struct Parsed(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    values: BTreeMap<Key, Entry>,
    /// The same by when they were used last.
    by_use: BTreeMap<u64, Key>,
    uses: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    value: Value,
    bytes: usize,
    used: u64,
}

impl Parsed {
    /// The value of a JSON text which never changes under this key. Two who ask at once parse it
    /// once: the second waits.
    pub(super) fn get(&self, key: Key, json: &Json, bytes: usize) -> Result<TemplateValue, Error> {
        let failed = |error: &String| {
            let error = format!("a value that is named cannot be read: {error}");
            Error::new(ErrorKind::InvalidOperation, error)
        };
        let value = self.entry(key, bytes);
        let parsed = value
            .get_or_init(|| serde_json::from_str(json.as_str()).map_err(|error| error.to_string()));
        parsed.as_ref().cloned().map_err(failed)
    }

    fn entry(&self, key: Key, bytes: usize) -> Value {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.uses += 1;
        let used = kept.uses;
        if let Some(entry) = kept.values.get_mut(&key) {
            let before = std::mem::replace(&mut entry.used, used);
            let value = Arc::clone(&entry.value);
            kept.by_use.remove(&before);
            kept.by_use.insert(used, key);
            return value;
        }
        let value = Value::default();
        if bytes <= KEPT_BYTES_MAX {
            while kept.bytes + bytes > KEPT_BYTES_MAX
                && let Some((_, oldest)) = kept.by_use.pop_first()
            {
                kept.remove(&oldest);
            }
            kept.bytes += bytes;
            kept.by_use.insert(used, key);
            kept.values.insert(key, Entry { value: Arc::clone(&value), bytes, used });
        }
        value
    }

    /// Forgets what belongs to a run that has ended.
    pub fn forget(&self, run: RunId) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = kept.values.range((run, Part::Input)..=(run, Part::Step(u16::MAX)));
        let keys: Vec<Key> = keys.map(|(key, _)| *key).collect();
        for key in keys {
            kept.remove(&key);
        }
    }
}

impl Kept {
    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.values.remove(key) {
            self.by_use.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }
}

/// About how much memory a JSON text takes when it is parsed; never much less. Counts the marks of
/// lists and maps without a look whether they are in a string.
pub(super) fn tree_bytes(text: &str) -> usize {
    let marks = text.bytes().map(|byte| match byte {
        b',' | b':' => ELEMENT_BYTES,
        b'[' => LIST_BYTES,
        b'{' => MAP_BYTES,
        _ => 1,
    });
    marks.fold(VALUE_BYTES, usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn key(run: u128, step: u16) -> Key {
        (RunId::from_uuid(Uuid::from_u128(run)), Part::Step(step))
    }

    fn kept(parsed: &Parsed) -> (usize, usize) {
        let kept = parsed.0.lock().unwrap();
        assert_eq!(kept.values.len(), kept.by_use.len());
        assert_eq!(kept.bytes, kept.values.values().map(|entry| entry.bytes).sum::<usize>());
        (kept.values.len(), kept.bytes)
    }

    #[test]
    fn a_value_is_parsed_once_and_what_was_not_used_goes_first() {
        let parsed = Parsed::default();
        let get = |key, text: &str, bytes| {
            let json = Json::from_text(text.to_owned());
            parsed.get(key, &json, bytes).unwrap().to_string()
        };
        assert_eq!(get(key(1, 0), "[1]", KEPT_BYTES_MAX / 2), "[1]");
        assert_eq!(get(key(1, 1), "[2]", KEPT_BYTES_MAX / 2), "[2]");
        // What is kept is not parsed again.
        assert_eq!(get(key(1, 0), "[9]", KEPT_BYTES_MAX / 2), "[1]");
        assert_eq!(get(key(2, 0), "[3]", KEPT_BYTES_MAX / 2), "[3]");
        assert_eq!(get(key(1, 1), "[4]", 1000), "[4]", "it had made room");
        assert_eq!(get(key(3, 0), "[5]", KEPT_BYTES_MAX + 1), "[5]");
        assert!(kept(&parsed).1 <= KEPT_BYTES_MAX);
        parsed.forget(RunId::from_uuid(Uuid::from_u128(1)));
        parsed.forget(RunId::from_uuid(Uuid::from_u128(2)));
        assert_eq!(kept(&parsed), (0, 0));
    }

    #[test]
    fn the_marks_of_lists_and_maps_count_more_than_letters() {
        for (text, expected) in [
            ("", VALUE_BYTES),
            ("true", VALUE_BYTES + 4),
            ("[1,2]", VALUE_BYTES + LIST_BYTES + ELEMENT_BYTES + 3),
            ("{\"a\":1}", VALUE_BYTES + MAP_BYTES + ELEMENT_BYTES + 5),
        ] {
            assert_eq!(tree_bytes(text), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_no_null() {
        let parsed = Parsed::default();
        let json = Json::from_text(format!("{}{}", "[".repeat(200), "]".repeat(200)));
        let error = parsed.get(key(1, 0), &json, 1000).unwrap_err();
        assert!(error.to_string().contains("cannot be read"), "{error}");
    }
}
