//! Sockets and names: the operating system's network behind the seams, and what bounds its use.
//!
//! - [`udp`] and [`tcp`] are the only files of this crate that open a socket or resolve a name.
//! - [`lookups`] bounds name lookups, which block a thread each and cannot be cancelled.
//! - [`shares`] divides a number of permits among tenants, so that one tenant cannot take them all.

pub(crate) mod lookups;
pub(crate) mod shares;
pub mod tcp;
pub mod udp;
