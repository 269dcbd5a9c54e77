//! Bytes that no log line shows.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Secret bytes: they travel and are stored, and `Debug` hides them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Hides `bytes`.
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.0.len())
    }
}

/// What is kept of a secret that is shown again and again: who knows the hash does not know the
/// secret. No log line shows it all the same, for a proof over it is as good as one over the secret.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// A hash that was made elsewhere.
    pub const fn new(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// Of an admin token.
    pub fn of_admin_token(token: &[u8]) -> Self {
        let hash = Sha256::new().chain_update(b"shiioo admin token 1").chain_update(token);
        Self(hash.finalize().into())
    }

    /// The bytes.
    pub const fn reveal(&self) -> &[u8; 32] {
        &self.0
    }
}

/// In a time that does not tell where two hashes differ.
impl PartialEq for SecretHash {
    fn eq(&self, other: &Self) -> bool {
        is_same(&self.0, &other.0)
    }
}

impl Eq for SecretHash {}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(..)")
    }
}

/// Whether two hashes or proofs are the same, in a time that does not tell where they differ: the
/// one comparison of what somebody shows with what is expected.
pub fn is_same(left: &[u8; 32], right: &[u8; 32]) -> bool {
    left.ct_eq(right).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(ones: impl IntoIterator<Item = usize>, value: u8) -> [u8; 32] {
        let mut hash = [0; 32];
        ones.into_iter().for_each(|at| hash[at] = value);
        hash
    }

    #[test]
    fn hashes_are_the_same_only_where_every_byte_is() {
        let zeros = [0; 32];
        assert!(is_same(&zeros, &zeros) && is_same(&with([3], 9), &with([3], 9)));
        for at in 0..32 {
            for bit in 0..8 {
                assert!(!is_same(&zeros, &with([at], 1 << bit)), "byte {at}, bit {bit}");
            }
            // Differences that cancel each other in a sum, an exclusive or, a product.
            let next = (at + 1) % 32;
            assert!(!is_same(&zeros, &with([at, next], 1)), "bytes {at} and {next}");
            assert!(!is_same(&zeros, &with([at, next], 128)), "bytes {at} and {next}");
        }
        assert!(!is_same(&zeros, &with(0..32, 1)) && !is_same(&zeros, &with(0..32, 8)));
        assert!(!is_same(&with([0], 1), &with([1], 1)), "the same bytes in another order");
        assert_ne!(SecretHash::new(zeros), SecretHash::new(with([0, 1], 1)));
    }

    #[test]
    fn a_hash_is_of_one_token_and_not_printed() {
        let hash = SecretHash::of_admin_token(b"sesame");
        assert_eq!(hash, SecretHash::of_admin_token(b"sesame"));
        assert_ne!(hash, SecretHash::of_admin_token(b"sesamf"));
        assert_eq!(format!("{:?}", SecretHash::new([7; 32])), "SecretHash(..)");
    }

    #[test]
    fn a_hash_is_written_as_its_bytes_are() {
        let bytes = crate::domain::codec::encode(&Some(SecretHash::new([7; 32])));
        assert_eq!(bytes, crate::domain::codec::encode(&Some([7_u8; 32])));
    }
}
