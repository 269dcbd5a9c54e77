//! Between nodes: where a group is led and how a command gets there, what nodes ask each other, and
//! how a node that is no member becomes one.

pub mod join;
pub(crate) mod node_rpc;
pub mod routing;
pub mod rpc_ids;
