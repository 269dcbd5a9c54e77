//! The checksum behind every value of an index: CRC-32 of the length of the key, the key and the
//! value.

/// Bytes of a checksum.
pub(crate) const CHECKSUM_BYTES: usize = 4;

/// Gives a value with its checksum behind it.
pub(crate) fn with_checksum(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len() + CHECKSUM_BYTES);
    bytes.extend_from_slice(value);
    bytes.extend_from_slice(&checksum(key, value).to_le_bytes());
    bytes
}

/// Tells whether the checksum behind a value is that of the key and the value.
pub(crate) fn has_valid_checksum(key: &[u8], bytes: &[u8]) -> bool {
    let split = bytes.len().checked_sub(CHECKSUM_BYTES);
    let split = split.and_then(|at| bytes.split_at_checked(at));
    split.is_some_and(|(value, sum)| checksum(key, value).to_le_bytes() == sum)
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    // The length keeps bytes that move from a key into its value from going unseen.
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_bound_to_its_key() {
        let row = with_checksum(b"key", b"value");
        assert!(has_valid_checksum(b"key", &row));
        assert!(!has_valid_checksum(b"kez", &row) && !has_valid_checksum(b"ke", &row));
        assert!(
            !has_valid_checksum(b"keyv", &row[1..]),
            "a byte moved from the value into the key"
        );
        for bit in 0..row.len() * 8 {
            let mut flipped = row.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!has_valid_checksum(b"key", &flipped), "bit {bit}");
        }
        assert!(!has_valid_checksum(b"key", b"abc"), "shorter than a checksum");
    }
}
