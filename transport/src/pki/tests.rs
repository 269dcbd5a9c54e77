use proptest::prelude::*;
use rcgen::SanType;
use rustls::pki_types::UnixTime;
use shiioo_actors::domain::ids::{NodeId, RaftId};

use super::*;
use crate::testing::Seeded;

fn name(raft_id: u64, cluster: Uuid) -> MemberName {
    MemberName { raft_id: RaftId(raft_id), node: NodeId::from_uuid(Uuid::from_u128(7)), cluster }
}

fn verify(authority: &[u8], certificate: &[u8]) -> Result<(), webpki::Error> {
    let authority = CertificateDer::from(authority);
    let anchor = webpki::anchor_from_trusted_cert(&authority)?;
    let certificate = CertificateDer::from(certificate);
    webpki::EndEntityCert::try_from(&certificate)?
        .verify_for_usage(
            &[webpki::ring::ED25519],
            &[anchor],
            &[],
            UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_700_000_000)),
            webpki::KeyUsage::client_auth(),
            None,
            None,
        )
        .map(|_| ())
}

#[test]
fn a_loaded_authority_vouches_as_the_one_that_was_created() {
    let entropy = Seeded::new(1);
    let cluster = Uuid::from_u128(42);
    let created = Authority::create(&entropy, cluster).unwrap();
    let loaded = Authority::load(created.cert_der(), created.key_der()).unwrap();
    assert_eq!((loaded.cluster(), loaded.fingerprint()), (cluster, created.fingerprint()));

    let key = NodeKey::generate(&entropy);
    let one = created.issue(&Seeded::new(9), key.public(), name(3, cluster)).unwrap();
    let other = loaded.issue(&Seeded::new(9), key.public(), name(3, cluster)).unwrap();
    assert_eq!(one, other, "the same bytes from the same entropy");
    assert_eq!(member_name(&one).unwrap(), name(3, cluster));
    assert_eq!(authority_cluster(created.cert_der()).unwrap(), cluster);
    verify(created.cert_der(), &one).unwrap();

    let stranger = Authority::create(&entropy, cluster).unwrap();
    assert!(verify(stranger.cert_der(), &one).is_err());
    assert_ne!(stranger.fingerprint(), created.fingerprint());
}

#[test]
fn an_authority_keeps_to_its_cluster_and_its_key() {
    let entropy = Seeded::new(2);
    let authority = Authority::create(&entropy, Uuid::from_u128(1)).unwrap();
    let other = Authority::create(&entropy, Uuid::from_u128(2)).unwrap();
    let public = NodeKey::generate(&entropy).public();
    assert!(matches!(
        authority.issue(&entropy, public, name(1, Uuid::from_u128(2))),
        Err(PkiError::ForeignCluster { .. })
    ));
    assert_eq!(
        Authority::load(authority.cert_der(), other.key_der()).unwrap_err(),
        PkiError::KeyMismatch
    );
    let leaf = authority.issue(&entropy, public, name(1, Uuid::from_u128(1))).unwrap();
    assert!(authority_cluster(&leaf).is_err(), "a member is no authority");
    assert!(member_name(authority.cert_der()).is_err(), "an authority is no member");
}

/// Whoever is two members is neither: which of them would be let in?
#[test]
fn a_certificate_with_two_names_names_nobody() {
    let entropy = Seeded::new(4);
    let cluster = Uuid::from_u128(1);
    let authority = Authority::create(&entropy, cluster).unwrap();
    let issuer = Issuer::new(authority_params(cluster).unwrap(), signer(&authority.key).unwrap());
    let key = PublicKey(NodeKey::generate(&entropy).public());
    let issued = |names: &[u64]| {
        let mut params = dated_params(&name(1, cluster).to_string()).unwrap();
        let text = |id: &u64| name(*id, cluster).to_string().try_into().unwrap();
        params.subject_alt_names = names.iter().map(|id| SanType::DnsName(text(id))).collect();
        params.signed_by(&key, &issuer).unwrap()
    };
    assert_eq!(member_name(issued(&[1]).der()).unwrap(), name(1, cluster));
    for names in [&[][..], &[1, 2], &[1, 1]] {
        let certificate = issued(names);
        assert!(
            matches!(member_name(certificate.der()), Err(PkiError::Unreadable { .. })),
            "{names:?}"
        );
    }
}

/// Even with the key in the wrong hands' library, the certificate itself limits what it signs.
#[test]
fn a_name_of_another_cluster_is_not_believed() {
    let entropy = Seeded::new(3);
    let authority = Authority::create(&entropy, Uuid::from_u128(1)).unwrap();
    let params = dated_params(&name(1, Uuid::from_u128(2)).to_string()).unwrap();
    let issuer =
        Issuer::new(authority_params(authority.cluster).unwrap(), signer(&authority.key).unwrap());
    let key = PublicKey(NodeKey::generate(&entropy).public());
    let forged = params.signed_by(&key, &issuer).unwrap();
    assert_eq!(
        verify(authority.cert_der(), forged.der()).unwrap_err(),
        webpki::Error::NameConstraintViolation
    );
}

#[test]
fn keys_survive_their_bytes() {
    let key = NodeKey::generate(&Seeded::new(4));
    assert_eq!(NodeKey::from_der(key.der()).unwrap().public(), key.public());
    assert!(NodeKey::from_der(&key.der()[1..]).is_err());
    assert!(NodeKey::from_der(&[0; 48]).is_err());
    assert!(!format!("{key:?}").contains("der"), "secrets are not printed");
}

proptest! {
    #[test]
    fn names_are_written_one_way(raft_id: u64, node: u128, cluster: u128) {
        let name = MemberName {
            raft_id: RaftId(raft_id),
            node: NodeId::from_uuid(Uuid::from_u128(node)),
            cluster: Uuid::from_u128(cluster),
        };
        prop_assert_eq!(name.to_string().parse::<MemberName>().unwrap(), name);
    }

    #[test]
    fn what_is_no_name_is_refused(text in "m?[0-9+]{0,3}[.a-f0-9-]{0,90}(\\.shiioo\\.internal)?") {
        if let Ok(name) = text.parse::<MemberName>() {
            prop_assert_eq!(name.to_string(), text);
        }
    }

    #[test]
    fn any_bytes_are_judged(bytes: Vec<u8>) {
        prop_assert!(member_name(&bytes).is_err());
        prop_assert!(authority_cluster(&bytes).is_err());
        prop_assert!(NodeKey::from_der(&bytes).is_err() || bytes.len() == 48);
    }
}

#[test]
fn other_spellings_are_refused() {
    let good = name(12, Uuid::from_u128(5)).to_string();
    assert!(good.parse::<MemberName>().is_ok());
    for bad in [
        good.to_uppercase(),
        good.replace("m12", "m012"),
        good.replace("m12", "m+12"),
        good.replace("shiioo", "other"),
        format!("{good}."),
        format!("x.{good}"),
        good.replace('-', ""),
    ] {
        assert!(bad.parse::<MemberName>().is_err(), "{bad}");
    }
}
