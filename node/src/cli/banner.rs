//! The banner of a node that is ready.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{Config, Node};

/// Formats what a person needs to know about a node that is ready.
pub(super) fn banner(node: &Node) -> String {
    let (config, identity) = (node.config(), node.identity());
    let api = callable(node.api_addr());
    let default = Config::default();
    let auto_assign = config.auto_assign;
    let moved = (auto_assign.data_dir && config.data_dir != default.data_dir)
        || (auto_assign.api_addr && node.api_addr() != default.api_addr)
        || (auto_assign.node_addr && node.node_addr() != default.node_addr);
    let is_local = api == node.api_addr() && api.ip().is_loopback();
    let access = match (node.has_admin_token(), is_local) {
        (true, _) => "needs a credential",
        (false, true) => "no admin token: open to this machine only",
        (false, false) => "NO admin token: open to everybody who reaches it",
    };
    format!(
        "shiioo {version} is ready\n  \
           node       {node_id} (region {region})\n  \
           cluster    {cluster_id}\n  \
           API        http://{api}/api ({access})\n  \
           nodes      {node_addr} (UDP)\n  \
           data       {data_dir}{moved}\n  \
           to join it {join}\n",
        version = env!("CARGO_PKG_VERSION"),
        node_id = identity.node_id,
        region = config.region,
        cluster_id = identity.cluster_id,
        node_addr = node.node_addr(),
        data_dir = config.data_dir.display(),
        moved = if moved { " (the defaults were taken by another node)" } else { "" },
        join = join_command(node),
    )
}

/// Replaces an unspecified address, which cannot be called, by the loopback address.
fn callable(mut addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() {
        addr.set_ip(match addr {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    addr
}

/// Formats the command by which another node joins the cluster of this one.
fn join_command(node: &Node) -> String {
    let config = node.config();
    let at = config.advertise_addr.clone().unwrap_or_else(|| node.node_addr().to_string());
    let needs_token = config.join_token.is_some() || node.has_admin_token();
    let token = if needs_token { " --join-token ..." } else { "" };
    format!("shiioo --join {at}{token}   (cargo run -- --join {at}{token})")
}
