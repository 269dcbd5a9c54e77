//! Values that clients send, each a type that cannot hold a bad one.
//!
//! They are checked while the body is read, so that an error carries the path of its field.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use shiioo_actors::domain::json::Json;
use shiioo_actors::domain::text::check_bytes;

use crate::input::raw_json::RawJson;

/// Longest name of a tenant, workflow or job, characters.
pub(crate) const NAME_CHARS_MAX: usize = 200;
/// Longest free text (description, reason), bytes.
const TEXT_BYTES_MAX: usize = 64 * 1024;
/// Longest address of a node registered over HTTP, bytes.
const ADDRESS_BYTES_MAX: usize = 2048;
/// Largest metadata of a tenant, a node or a lock, bytes of compact JSON.
pub(crate) const METADATA_BYTES_MAX: usize = 64 * 1024;
/// Largest number in JSON: beyond it some readers lose digits.
const NUMBER_MAX: u64 = 1 << 53;
/// Largest quota of bytes.
const BYTES_MAX: u64 = i64::MAX as u64;
/// Shortest and longest term of a lock, seconds.
const TTL_SECS: RangeInclusive<f64> = 0.1..=86_400.0;
/// Shortest and longest wait of a long poll, seconds.
const WAIT_SECS: RangeInclusive<f64> = 0.0..=300.0;

/// Checks a name: 1-200 characters, not blank, no control characters.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let chars = name.chars().count();
    if chars > NAME_CHARS_MAX {
        return Err(format!("must be 1 to {NAME_CHARS_MAX} characters long, is {chars}"));
    }
    if name.trim().is_empty() {
        return Err(format!("must be 1 to {NAME_CHARS_MAX} characters long and not blank"));
    }
    if name.chars().any(char::is_control) {
        return Err("must not contain control characters".into());
    }
    Ok(())
}

fn check_text(text: &str) -> Result<(), String> {
    if text.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(format!("must be at most {TEXT_BYTES_MAX} bytes of UTF-8, is {}", text.len()))
}

fn check_address(address: &str) -> Result<(), String> {
    check_bytes(address, ADDRESS_BYTES_MAX)?;
    if address.trim().is_empty() || address.chars().any(char::is_control) {
        return Err("must not be blank or contain control characters".into());
    }
    Ok(())
}

macro_rules! text_field {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
        #[serde(try_from = "String")]
        pub(crate) struct $name(pub(crate) String);

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                $check(&text)?;
                Ok(Self(text))
            }
        }
    };
}

text_field!(
    /// Name of a tenant or job.
    Name, check_name
);
text_field!(
    /// Free text.
    Text, check_text
);
text_field!(
    /// Where a node registered over HTTP is.
    Address, check_address
);

/// A text that is parsed into a type of the domain, which has a check of its own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String", bound = "T: TryFrom<String, Error = String>")]
pub(crate) struct Parsed<T>(pub(crate) T);

impl<T: TryFrom<String, Error = String>> TryFrom<String> for Parsed<T> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        T::try_from(text).map(Self)
    }
}

/// A whole number from 0 to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u64")]
pub(crate) struct UpTo<const MAX: u64>(pub(crate) u64);

impl<const MAX: u64> TryFrom<u64> for UpTo<MAX> {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        if number > MAX {
            return Err(format!("must be a whole number from 0 to {MAX}, is {number}"));
        }
        Ok(Self(number))
    }
}

/// A whole number that every client's number can be, to 2^53.
pub(crate) type Whole = UpTo<NUMBER_MAX>;

/// Reads seconds within a range. No range contains NaN.
pub(crate) fn seconds(secs: f64, range: &RangeInclusive<f64>) -> Result<Duration, String> {
    if !range.contains(&secs) {
        let (least, most) = (range.start(), range.end());
        return Err(format!("must be from {least} to {most} seconds, is {secs}"));
    }
    Ok(Duration::from_secs_f64(secs))
}

/// Length of a lock's term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "f64")]
pub(crate) struct Ttl(pub(crate) Duration);

impl TryFrom<f64> for Ttl {
    type Error = String;

    fn try_from(secs: f64) -> Result<Self, String> {
        seconds(secs, &TTL_SECS).map(Self)
    }
}

/// How long a long poll waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "f64")]
pub(crate) struct Wait(pub(crate) Duration);

impl TryFrom<f64> for Wait {
    type Error = String;

    fn try_from(secs: f64) -> Result<Self, String> {
        seconds(secs, &WAIT_SECS).map(Self)
    }
}

/// A quota or a number of days: existing clients read it into 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u64")]
pub(crate) struct Count(pub(crate) u32);

impl TryFrom<u64> for Count {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        let wrong = |_| format!("must be a whole number from 0 to {}, is {number}", u32::MAX);
        u32::try_from(number).map(Self).map_err(wrong)
    }
}

/// A quota of bytes: existing clients read it into a signed or unsigned number of 64 bits.
pub(crate) type Bytes = UpTo<BYTES_MAX>;

/// JSON of the owner's that is stored with a resource, bounded in size.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "RawJson")]
pub(crate) struct Attached(pub(crate) Json);

impl TryFrom<RawJson> for Attached {
    type Error = String;

    fn try_from(RawJson(json): RawJson) -> Result<Self, String> {
        match json.as_str().len() {
            bytes if bytes > METADATA_BYTES_MAX => {
                Err(format!("must be at most {METADATA_BYTES_MAX} bytes of JSON, is {bytes}"))
            }
            _ => Ok(Self(json)),
        }
    }
}

/// Texts of the owner's, by name, that are stored with a resource, bounded in size. Existing
/// clients read nothing else there.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Texts")]
pub(crate) struct Metadata(pub(crate) Json);

/// A JSON object with nothing but texts. The names are sorted, so that the same metadata is the
/// same text.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
struct Texts(BTreeMap<String, String>);

impl TryFrom<Texts> for Metadata {
    type Error = String;

    fn try_from(Texts(texts): Texts) -> Result<Self, String> {
        let object = texts.into_iter().map(|(name, text)| (name, text.into())).collect();
        let json = Json::from_value(&serde_json::Value::Object(object));
        Attached::try_from(RawJson(json)).map(|Attached(json)| Self(json))
    }
}

/// Reads a JSON object as `T`, or `null` as nothing. The readers that serde derives would also
/// take an array, field by field.
pub(crate) fn object<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Object<T>(std::marker::PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a JSON object")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map)).map(Some)
        }
    }

    deserializer.deserialize_any(Object(std::marker::PhantomData))
}

/// Reads a field whose `null` differs from its absence (with `#[serde(default)]`).
pub(crate) fn nullable<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    Option::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use shiioo_actors::domain::lock::Holder;

    use super::*;

    fn reads<T: DeserializeOwned>(text: &str) -> bool {
        serde_json::from_str::<T>(text).is_ok()
    }

    #[test]
    fn names_are_1_to_200_visible_characters() {
        assert!(reads::<Name>("\"x\""));
        assert!(reads::<Name>(&format!("\"{}\"", "\u{fc}".repeat(200))));
        assert!(!reads::<Name>(&format!("\"{}\"", "x".repeat(201))));
        for bad in ["\"\"", "\"  \"", "\"a\\nb\"", "\"a\\u0000\"", "7", "null"] {
            assert!(!reads::<Name>(bad), "{bad}");
        }
    }

    #[test]
    fn numbers_are_whole_and_safe() {
        assert!(reads::<Whole>("0") && reads::<Whole>("9007199254740992"));
        for bad in ["-1", "1.5", "1.0", "1e3", "9007199254740993", "1e400", "\"7\"", "NaN"] {
            assert!(!reads::<Whole>(bad), "{bad}");
        }
    }

    #[test]
    fn quotas_fit_into_what_clients_read_them_into() {
        assert!(reads::<Count>("0") && reads::<Count>("4294967295"));
        assert!(reads::<Bytes>("0") && reads::<Bytes>("9223372036854775807"));
        for bad in ["-1", "1.0", "4294967296", "\"7\""] {
            assert!(!reads::<Count>(bad), "{bad}");
        }
        assert!(!reads::<Bytes>("9223372036854775808") && !reads::<Bytes>("1.0"));
    }

    #[test]
    fn seconds_keep_their_fractions() {
        let ttl: Ttl = serde_json::from_str("1.75").unwrap();
        assert_eq!(ttl.0, Duration::from_millis(1750));
    }

    #[test]
    fn texts_end_at_the_exact_byte() {
        assert!(reads::<Parsed<Holder>>(&format!("\"{}\"", "h".repeat(256))));
        assert!(!reads::<Parsed<Holder>>(&format!("\"{}\"", "h".repeat(257))));
        assert!(reads::<Address>(&format!("\"{}\"", "a".repeat(2048))));
        assert!(!reads::<Address>(&format!("\"{}\"", "a".repeat(2049))));
        assert!(reads::<Text>(&format!("\"{}\"", "t".repeat(65536))));
        assert!(!reads::<Text>(&format!("\"{}\"", "t".repeat(65537))));
    }

    #[test]
    fn durations_have_their_ranges() {
        assert!(reads::<Ttl>("0.1") && reads::<Ttl>("86400") && reads::<Wait>("0"));
        for bad in ["0.09", "86400.1", "-1", "null", "\"5\""] {
            assert!(!reads::<Ttl>(bad), "{bad}");
        }
        assert!(Wait::try_from(f64::NAN).is_err() && Wait::try_from(300.5).is_err());
    }

    #[test]
    fn metadata_is_a_bounded_object_of_texts() {
        assert!(reads::<Metadata>("{\"a\":\"1\",\"b\":\"\"}") && reads::<Metadata>("{}"));
        for bad in ["[\"a\"]", "\"x\"", "{\"a\":1}", "{\"a\":null}", "{\"a\":{\"b\":\"c\"}}"] {
            assert!(!reads::<Metadata>(bad), "{bad}");
        }
        let fits = format!("{{\"a\":\"{}\"}}", "x".repeat(METADATA_BYTES_MAX - 8));
        assert!(reads::<Metadata>(&fits));
        let large = format!("{{\"a\":\"{}\"}}", "x".repeat(METADATA_BYTES_MAX));
        assert!(!reads::<Metadata>(&large));
    }
}
