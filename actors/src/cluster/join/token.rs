//! Join secrets: those that the cluster makes, and those of its owner's choice.

use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::domain::ids::TokenId;
use crate::domain::membership::SHARED_SECRET;
use crate::domain::secret::SecretHash;
use crate::ports::seams::Entropy;

/// What a token made by a cluster begins with: kind and version.
const PREFIX: &str = "SHK1.";
/// Random bytes in the secret of a token.
const SECRET_BYTES: usize = 24;
/// Shortest secret of one's own choice, characters: shorter ones can be guessed.
const SECRET_CHARS_MIN: usize = 8;
/// Longest secret of one's own choice, characters.
const SECRET_CHARS_MAX: usize = 1024;

/// What a node shows that it may join: `SHK1.<CA fingerprint>.<id>.<secret>`, or any other text,
/// which then is a secret that the cluster was founded with.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinSecret {
    /// Which token it is.
    pub id: TokenId,
    /// SHA-256 of the certificate of the cluster's authority, where the token says it.
    pub authority: Option<[u8; 32]>,
    secret: String,
}

impl std::fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinSecret({})", self.id)
    }
}

/// A text that cannot be a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseTokenError(&'static str);

/// Who proves that it knows the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prover {
    /// The node that wants to join.
    Joiner,
    /// The member that lets it in.
    Member,
}

impl JoinSecret {
    /// A new token of a cluster.
    pub fn generate(entropy: &dyn Entropy, id: TokenId, authority: [u8; 32]) -> Self {
        let mut bytes = [0; SECRET_BYTES];
        entropy.fill(&mut bytes);
        Self { id, authority: Some(authority), secret: hex::encode(bytes) }
    }

    /// The token as it is shown, once.
    pub fn reveal(&self) -> String {
        match self.authority {
            Some(authority) => {
                format!(
                    "{PREFIX}{}.{}.{}",
                    hex::encode(authority),
                    self.id.uuid().simple(),
                    self.secret
                )
            }
            None => self.secret.clone(),
        }
    }

    /// What the cluster keeps of it.
    pub fn hash(&self) -> SecretHash {
        SecretHash::new(digest(&[b"shiioo join secret 1", self.secret.as_bytes()]))
    }

    /// Proves over a connection that one knows the secret.
    pub fn prove(&self, prover: Prover, binding: &[u8; 32]) -> [u8; 32] {
        proof(&self.hash(), prover, binding)
    }
}

/// A proof over a connection that one knows the secret with this hash. All inputs have a fixed
/// length, so that the plain hash is a safe key'd hash here.
pub fn proof(secret_hash: &SecretHash, prover: Prover, binding: &[u8; 32]) -> [u8; 32] {
    let who: &[u8] = match prover {
        Prover::Joiner => b"shiioo joiner 1",
        Prover::Member => b"shiioo member 1",
    };
    digest(&[secret_hash.reveal(), binding, who])
}

impl FromStr for JoinSecret {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let Some(rest) = text.strip_prefix(PREFIX) else {
            let chars = text.chars().count();
            if !(SECRET_CHARS_MIN..=SECRET_CHARS_MAX).contains(&chars) {
                return Err(ParseTokenError("a join secret has 8 to 1024 characters"));
            }
            return Ok(Self { id: SHARED_SECRET, authority: None, secret: text.to_owned() });
        };
        const DAMAGED: ParseTokenError = ParseTokenError(
            "a token that begins with SHK1. is SHK1.<authority>.<id>.<secret>: copy it whole",
        );
        let mut parts = rest.split('.');
        let (Some(authority), Some(id), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(DAMAGED);
        };
        let authority = hex::decode(authority).ok().and_then(|bytes| bytes.try_into().ok());
        let authority: [u8; 32] = authority.ok_or(DAMAGED)?;
        let id = uuid::Uuid::try_parse(id).map_err(|_| DAMAGED)?;
        if secret.len() != SECRET_BYTES * 2 {
            return Err(DAMAGED);
        }
        Ok(Self {
            id: TokenId::from_uuid(id),
            authority: Some(authority),
            secret: secret.to_owned(),
        })
    }
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::secret::is_same;
    use crate::testing::Sevens;

    #[test]
    fn a_token_is_read_as_it_was_shown() {
        let id = TokenId::from_uuid(uuid::Uuid::from_u128(5));
        let token = JoinSecret::generate(&Sevens, id, [0xab; 32]);
        let shown = token.reveal();
        assert!(shown.starts_with("SHK1.abab"), "{shown}");
        assert_eq!(shown.parse(), Ok(token));
        assert!(!format!("{:?}", shown.parse::<JoinSecret>()).contains("0707"));
        for damaged in [&shown[..shown.len() - 1], &shown.replace('b', "g"), "SHK1.", "SHK1.a.b.c"]
        {
            assert!(damaged.parse::<JoinSecret>().is_err(), "{damaged}");
        }
    }

    #[test]
    fn a_secret_of_ones_own_is_a_token_without_authority() {
        let secret: JoinSecret = "correct horse".parse().unwrap();
        assert_eq!((secret.id, secret.authority), (SHARED_SECRET, None));
        assert!("short".parse::<JoinSecret>().is_err());
    }

    #[test]
    fn a_proof_holds_for_one_side_of_one_connection() {
        let secret: JoinSecret = "correct horse".parse().unwrap();
        let other: JoinSecret = "correct house".parse().unwrap();
        let right = secret.prove(Prover::Joiner, &[1; 32]);
        assert!(is_same(&right, &proof(&secret.hash(), Prover::Joiner, &[1; 32])));
        for wrong in [
            secret.prove(Prover::Member, &[1; 32]),
            secret.prove(Prover::Joiner, &[2; 32]),
            other.prove(Prover::Joiner, &[1; 32]),
        ] {
            assert!(!is_same(&right, &wrong));
        }
    }
}
