//! Trials that go on as long as one likes, each with what it holds the nodes to.

pub mod chaos;
pub mod cluster_chaos;
pub mod failover;
pub mod grow;
pub mod hostile;
