//! The cluster's authority on the node that founds the cluster: given to the control plane, and kept
//! in the identity until the cluster has it.

use std::sync::Arc;

use shiioo_actors::domain::ids::{NodeId, RaftId};
use shiioo_actors::domain::membership::Authority;
use shiioo_actors::domain::secret::SecretBytes;
use shiioo_actors::node::Founding;
use shiioo_actors::ports::seams::Seams;
use shiioo_actors::{cluster::join::JoinSecret, ports::CertificateIssuer};
use shiioo_transport::pki::{self, MemberName};

use super::ServicesError;
use crate::config::Config;
use crate::identity::{Identity, IdentityError};
use crate::seams::NodeSeams;

/// Returns what the node founds its cluster with, until the cluster has confirmed that it has it.
pub(super) fn founding(
    config: &Config,
    identity: &Identity,
) -> Result<Option<Founding>, ServicesError> {
    let Some(key) = &identity.authority_key else { return Ok(None) };
    let secret = config.join_token.as_ref().map(|token| token.reveal().parse::<JoinSecret>());
    let secret = secret.transpose().map_err(|error| ServicesError::Token(error.to_string()))?;
    if secret.as_ref().is_some_and(|secret| secret.authority.is_some()) {
        let why = "this token was made by another cluster; choose a secret of your own, or --join";
        return Err(ServicesError::Token(why.to_owned()));
    }
    Ok(Some(Founding {
        authority: Authority {
            cluster: identity.cluster_id,
            certificate: identity.authority.clone(),
            key: SecretBytes::new(key.der().to_vec()),
        },
        public_key: identity.key.public(),
        secret_hash: secret.map(|secret| secret.hash()),
    }))
}

/// Removes the authority's key from the identity, durably. Called when the cluster has the key.
pub(super) async fn forget_authority_key(
    seams: &NodeSeams,
    mut identity: Identity,
) -> Result<Identity, IdentityError> {
    if identity.authority_key.take().is_some() {
        let (disk, kept) = (Arc::clone(&seams.disk), identity.clone());
        seams.executor.run(move || kept.store(&*disk)).await?;
    }
    Ok(identity)
}

/// Issues certificates with the cluster's authority.
pub(super) struct Issuer(pub(super) Seams);

impl CertificateIssuer for Issuer {
    fn issue(
        &self,
        authority: &Authority,
        public_key: [u8; 32],
        raft_id: RaftId,
        node: NodeId,
    ) -> Result<Vec<u8>, String> {
        let name = MemberName { raft_id, node, cluster: authority.cluster };
        pki::Authority::load(&authority.certificate, authority.key.reveal())
            .and_then(|authority| authority.issue(&*self.0.entropy, public_key, name))
            .map_err(|error| error.to_string())
    }
}
