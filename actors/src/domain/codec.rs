//! The one place that knows the binary encoding of the log, the indexes and the wire.
//!
//! bincode 2 (fixed configuration: little endian, variable-length integers, no trailing bytes)
//! encodes plain serde structs. It cannot decode self-describing types, so JSON travels as bytes
//! and API types never come here. Whoever stores what this module writes puts a version in front.

use bincode::config::{Configuration, Limit};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest value that is decoded, in bytes. Whoever encodes bounds what it holds well below:
/// a run's payload, a request's body.
pub const DECODE_BYTES_MAX: usize = 64 << 20;

const CONFIG: Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    Limit<DECODE_BYTES_MAX>,
> = bincode::config::standard().with_limit::<DECODE_BYTES_MAX>();

/// Bytes that are not an encoding of the value asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They are none of any version that is known.
    #[error("cannot decode: {0}")]
    Garbled(String),
    /// A later version of the program wrote them.
    #[error("{what} version {version} was written by a newer shiioo; this one knows up to {known}")]
    TooNew {
        /// What has a version.
        what: &'static str,
        /// Its version.
        version: u64,
        /// The version that this program knows.
        known: u64,
    },
}

/// Encodes `value`.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_into(value, &mut bytes);
    bytes
}

/// Encodes `value` behind what `bytes` already holds.
pub fn encode_into<T: Serialize>(value: &T, bytes: &mut Vec<u8>) {
    // Our types have no fallible `Serialize` and a Vec takes every write: this cannot fail.
    bincode::serde::encode_into_std_write(value, bytes, CONFIG)
        .expect("encoding into memory cannot fail");
}

/// Bytes that `value` takes encoded, without encoding it: texts are not copied.
pub fn encoded_len<T: Serialize>(value: &T) -> usize {
    let mut counted = bincode::enc::write::SizeWriter::default();
    bincode::serde::encode_into_writer(value, &mut counted, CONFIG)
        .expect("counting bytes cannot fail");
    counted.bytes_written
}

/// Decodes a value that fills `bytes` to the last byte.
///
/// # Errors
/// When `bytes` is no encoding of a `T`, is longer than one, or claims more than
/// [`DECODE_BYTES_MAX`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (value, used) = bincode::serde::decode_from_slice(bytes, CONFIG)
        .map_err(|error| DecodeError::Garbled(error.to_string()))?;
    if used == bytes.len() {
        Ok(value)
    } else {
        Err(DecodeError::Garbled(format!("{} bytes too many", bytes.len() - used)))
    }
}

/// Decodes a value that `bytes` begin with: the version of what comes behind it.
///
/// # Errors
/// When `bytes` do not begin with an encoding of a `T`.
pub fn decode_first<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let decoded = bincode::serde::decode_from_slice(bytes, CONFIG);
    decoded.map(|(value, _)| value).map_err(|error| DecodeError::Garbled(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_that_of_the_bytes() {
        for text in ["", "a", &"long".repeat(100)] {
            for number in [0, 250, 251, u64::MAX] {
                let value = (text, Some(number), vec![number; 3]);
                assert_eq!(encoded_len(&value), encode(&value).len(), "{value:?}");
            }
        }
    }
}
