//! Who signs the certificates that members know each other by.

use crate::domain::ids::{NodeId, RaftId};
use crate::domain::membership::Authority;

/// Signs certificates of members.
pub trait CertificateIssuer: Send + Sync + 'static {
    /// A certificate for the key of a member, DER.
    ///
    /// # Errors
    /// When the authority's own certificate or key cannot be used.
    fn issue(
        &self,
        authority: &Authority,
        public_key: [u8; 32],
        raft_id: RaftId,
        node: NodeId,
    ) -> Result<Vec<u8>, String>;
}
