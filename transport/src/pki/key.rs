//! The private key of a node.

use std::fmt;

use ring::signature::{Ed25519KeyPair, KeyPair as _};
use shiioo_actors::ports::seams::Entropy;

use super::{PkiError, unreadable};

/// Length of an ed25519 seed, bytes.
const SEED_BYTES: usize = 32;
/// Bytes before the seed in PKCS#8 version 1 (RFC 5958, RFC 8410): version 0, the
/// algorithm's id, and an octet string in an octet string.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// Length of a key in PKCS#8, bytes.
const PKCS8_BYTES: usize = PKCS8_PREFIX.len() + SEED_BYTES;

/// Holds an ed25519 key pair, with which a node proves its name.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeKey {
    der: [u8; PKCS8_BYTES],
    public: [u8; 32],
}

impl NodeKey {
    /// Makes a new key.
    pub fn generate(entropy: &dyn Entropy) -> Self {
        let mut der = [0; PKCS8_BYTES];
        der[..PKCS8_PREFIX.len()].copy_from_slice(&PKCS8_PREFIX);
        entropy.fill(&mut der[PKCS8_PREFIX.len()..]);
        // Any 32 bytes are a seed: this cannot fail.
        Self::from_der(&der).expect("a key made of a seed")
    }

    /// Reads the key that [`Self::der`] wrote.
    ///
    /// # Errors
    /// When the bytes are anything else.
    pub fn from_der(der: &[u8]) -> Result<Self, PkiError> {
        let what = "the private key";
        let der: [u8; PKCS8_BYTES] = der
            .try_into()
            .map_err(|_| unreadable(what, &format!("it is {} bytes long", der.len())))?;
        let seed = der
            .strip_prefix(&PKCS8_PREFIX)
            .ok_or_else(|| unreadable(what, "it is no ed25519 key in PKCS#8"))?;
        let pair = Ed25519KeyPair::from_seed_unchecked(seed)
            .map_err(|error| unreadable(what, &error.to_string()))?;
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        Ok(Self { der, public })
    }

    /// Returns the private key in PKCS#8: a secret.
    pub const fn der(&self) -> &[u8] {
        &self.der
    }

    /// Returns the public key.
    pub const fn public(&self) -> [u8; 32] {
        self.public
    }
}

impl fmt::Debug for NodeKey {
    /// Leaves out the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKey").finish_non_exhaustive()
    }
}
