//! Certificates: how a node proves which member of which cluster it is.
//!
//! # Who issues what
//!
//! The first node of a cluster makes the cluster's *authority*: a key and a self-signed certificate.
//! The key is replicated, so that any leader can admit a member; until the cluster has confirmed that
//! it has the key, the first node keeps it in its identity file. A node that joins makes a key of its
//! own and sends the public half; the private half never leaves the node. The member that admits it
//! has the authority *issue* a certificate, which binds the key to a [`MemberName`]: raft id, node
//! id and cluster.
//!
//! # How a connection is checked
//!
//! Both ends of a connection between members verify that the cluster's authority issued the other
//! end's certificate. The dialling end also verifies that it names exactly the member that it wanted.
//! The accepting end looks the name up in the table of members. A joiner knows at most the
//! fingerprint of the authority, from its join token: it believes any member of that authority.
//!
//! # Invariants
//!
//! - Every key is ed25519: all signatures have one length, so that a simulated handshake has the same
//!   number of bytes each time.
//! - Every certificate is valid from 2020 to 2120: no decision between nodes depends on a wall
//!   clock. A node is shut out by its membership, never by a date; there is no revocation list and
//!   no renewal.
//! - An authority can sign for names of its own cluster only: a name constraint in its certificate
//!   says so, and verifiers enforce it, whatever is done with its key.
//! - A certificate has exactly one name. A certificate with two would be two members.
//! - Keys and serial numbers come from the entropy seam; nothing else about a certificate varies.

mod key;
mod name;
mod wall_time;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ED25519,
    PublicKeyData, SerialNumber, SignatureAlgorithm, date_time_ymd,
};
use ring::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use shiioo_actors::ports::seams::Entropy;
use uuid::Uuid;

pub use key::NodeKey;
pub use name::{MemberName, NameError};
pub(crate) use wall_time::wall_time;

/// First year in which a certificate is valid.
const VALID_FROM_YEAR: i32 = 2020;
/// First year in which it is no longer valid.
const VALID_UNTIL_YEAR: i32 = 2120;
/// Length of a serial number, bytes.
const SERIAL_BYTES: usize = 16;

/// Tells why a certificate or a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PkiError {
    /// The bytes do not parse.
    #[error("{what} cannot be read: {why}")]
    Unreadable {
        /// Kind of thing that they should be.
        what: &'static str,
        /// Reason.
        why: String,
    },
    /// The key is not the one that the certificate names.
    #[error("the authority's key does not belong to its certificate")]
    KeyMismatch,
    /// The name belongs to another cluster than the authority.
    #[error("the authority of cluster {authority} issues no certificate for a member of {name}")]
    ForeignCluster {
        /// The authority's cluster.
        authority: Uuid,
        /// The name's cluster.
        name: Uuid,
    },
    /// The library refused to make the certificate.
    #[error("the certificate cannot be made: {0}")]
    Refused(String),
}

/// Issues the certificates of a cluster's members.
#[derive(Debug)]
pub struct Authority {
    cluster: Uuid,
    certificate: CertificateDer<'static>,
    key: NodeKey,
}

impl Authority {
    /// Makes the authority of a new cluster.
    ///
    /// # Errors
    /// When the library refuses to sign.
    pub fn create(entropy: &dyn Entropy, cluster: Uuid) -> Result<Self, PkiError> {
        let key = NodeKey::generate(entropy);
        let mut params = authority_params(cluster)?;
        params.serial_number = Some(serial(entropy));
        let certificate = params.self_signed(&signer(&key)?).map_err(refused)?.der().clone();
        Ok(Self { cluster, certificate, key })
    }

    /// Loads the authority that [`Self::cert_der`] and [`Self::key_der`] were written by.
    ///
    /// # Errors
    /// When they cannot be read or do not belong together.
    pub fn load(cert_der: &[u8], key_der: &[u8]) -> Result<Self, PkiError> {
        let key = NodeKey::from_der(key_der)?;
        let certificate = CertificateDer::from(cert_der.to_vec());
        let cluster = authority_cluster(&certificate)?;
        let parsed = end_entity(&certificate, "the authority's certificate")?;
        let info = parsed.subject_public_key_info();
        if info.as_ref() != PublicKey(key.public()).subject_public_key_info() {
            return Err(PkiError::KeyMismatch);
        }
        Ok(Self { cluster, certificate, key })
    }

    /// Returns the cluster whose members it issues certificates for.
    pub const fn cluster(&self) -> Uuid {
        self.cluster
    }

    /// Returns its certificate, which every node keeps.
    pub fn cert_der(&self) -> &[u8] {
        &self.certificate
    }

    /// Returns its private key, PKCS#8. A holder of this key can make members.
    pub fn key_der(&self) -> &[u8] {
        self.key.der()
    }

    /// Returns its fingerprint: SHA-256 of its certificate.
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.certificate)
    }

    /// Issues a certificate that binds a public key to a member.
    ///
    /// # Errors
    /// When the name belongs to another cluster, or the library refuses to sign.
    pub fn issue(
        &self,
        entropy: &dyn Entropy,
        public: [u8; 32],
        name: MemberName,
    ) -> Result<Vec<u8>, PkiError> {
        if name.cluster != self.cluster {
            return Err(PkiError::ForeignCluster { authority: self.cluster, name: name.cluster });
        }
        let text = name.to_string();
        let mut params = dated_params(&text)?;
        params.serial_number = Some(serial(entropy));
        params.distinguished_name = common_name(&format!("shiioo member {}", name.raft_id));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let issuer = Issuer::new(authority_params(self.cluster)?, signer(&self.key)?);
        let certificate = params.signed_by(&PublicKey(public), &issuer).map_err(refused)?;
        Ok(certificate.der().to_vec())
    }
}

/// Computes SHA-256 of an authority's certificate.
pub fn fingerprint(cert_der: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, cert_der).as_ref());
    bytes
}

/// Reads the member that a certificate names. Does not verify its signature.
///
/// # Errors
/// When the bytes are no certificate, or it does not name exactly one member.
pub fn member_name(cert_der: &[u8]) -> Result<MemberName, PkiError> {
    let what = "the member's certificate";
    let certificate = CertificateDer::from(cert_der);
    let name = only_name(&certificate, what)?;
    name.parse().map_err(|error: NameError| unreadable(what, &error.to_string()))
}

/// Reads the cluster that an authority's certificate is for. Does not verify its signature.
///
/// # Errors
/// When the bytes are no certificate of a cluster's authority.
pub fn authority_cluster(cert_der: &[u8]) -> Result<Uuid, PkiError> {
    let what = "the authority's certificate";
    let certificate = CertificateDer::from(cert_der);
    let name = only_name(&certificate, what)?;
    name::cluster_of_authority(&name).map_err(|error| unreadable(what, &error.to_string()))
}

fn only_name(certificate: &CertificateDer<'_>, what: &'static str) -> Result<String, PkiError> {
    let parsed = end_entity(certificate, what)?;
    let mut names = parsed.valid_dns_names();
    match (names.next(), names.next()) {
        (Some(name), None) => Ok(name.to_owned()),
        _ => Err(unreadable(what, "it does not hold exactly one name")),
    }
}

fn end_entity<'a>(
    certificate: &'a CertificateDer<'_>,
    what: &'static str,
) -> Result<webpki::EndEntityCert<'a>, PkiError> {
    webpki::EndEntityCert::try_from(certificate)
        .map_err(|error| unreadable(what, &error.to_string()))
}

/// Makes the contents of an authority's certificate: a function of the cluster alone, so that a
/// loaded authority signs like the one that was created.
fn authority_params(cluster: Uuid) -> Result<CertificateParams, PkiError> {
    let mut params = dated_params(&name::authority_name(cluster))?;
    params.distinguished_name = common_name(&format!("shiioo cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(name::cluster_domain(cluster))],
        excluded_subtrees: Vec::new(),
    });
    Ok(params)
}

fn dated_params(name: &str) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(refused)?;
    params.not_before = date_time_ymd(VALID_FROM_YEAR, 1, 1);
    params.not_after = date_time_ymd(VALID_UNTIL_YEAR, 1, 1);
    Ok(params)
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

fn serial(entropy: &dyn Entropy) -> SerialNumber {
    let mut bytes = [0; SERIAL_BYTES];
    entropy.fill(&mut bytes);
    SerialNumber::from_slice(&bytes)
}

fn signer(key: &NodeKey) -> Result<KeyPair, PkiError> {
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.der()));
    KeyPair::from_der_and_sign_algo(&der, &PKCS_ED25519).map_err(refused)
}

/// Wraps the public key of another node, all that the authority needs.
struct PublicKey([u8; 32]);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

fn refused(error: rcgen::Error) -> PkiError {
    PkiError::Refused(error.to_string())
}

fn unreadable(what: &'static str, why: &str) -> PkiError {
    PkiError::Unreadable { what, why: why.to_owned() }
}

#[cfg(test)]
mod tests;
