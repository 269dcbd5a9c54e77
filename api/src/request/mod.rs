//! What stands behind one request: its attempt, its tenant, and what its handler may call.

pub(crate) mod admission;
pub(crate) mod answers;
pub(crate) mod attempt;
pub(crate) mod ctx;
pub(crate) mod tenant;
