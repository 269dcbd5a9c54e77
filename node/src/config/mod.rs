//! The configuration of a node: a plain struct, built by hand in tests, or from flags, environment
//! and a file by [`settings`].

mod parse;
pub mod settings;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::domain::region::Region;

/// Default port of the API.
const API_PORT: u16 = 3000;
/// Default port of the connections between nodes.
const NODE_PORT: u16 = 7400;

/// Configures a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Address at which the HTTP API listens; port 0 takes any free one.
    pub api_addr: SocketAddr,
    /// Address of the connections between nodes, UDP; port 0 takes any free one.
    pub node_addr: SocketAddr,
    /// Address that the other nodes dial, host and port; the node address if absent.
    pub advertise_addr: Option<String>,
    /// The data directory, for messages: the files themselves are reached through
    /// [`NodeSeams::disk`](crate::NodeSeams).
    pub data_dir: PathBuf,
    /// Node addresses of members, host and port. When empty, the node founds a cluster, or goes on
    /// with the one that the data directory belongs to.
    pub join: Vec<String>,
    /// Secret that admits new members.
    pub join_token: Option<Secret>,
    /// Placement region.
    pub region: Region,
    /// Metadata of the node.
    pub labels: BTreeMap<String, String>,
    /// Credential that management calls need.
    pub admin_token: Option<Secret>,
    /// Lets the API listen beyond loopback without an admin token.
    pub insecure: bool,
    /// Names and addresses, beside localhost and the loopback addresses, under which requests may
    /// reach the API while there is no admin token.
    pub api_hosts: Vec<String>,
    /// Longest wait of a request for an owner.
    pub request_timeout: Duration,
    /// Longest interval of heartbeats that nodes registered over HTTP are told.
    pub heartbeat_interval: Duration,
    /// Silence after which such a node is unhealthy.
    pub unhealthy_after: Duration,
    /// Longest time from a leader's last heartbeat to the campaign against it.
    pub election_timeout: Duration,
    /// Tenant of requests at short paths that name none.
    pub default_tenant: Option<DefaultTenant>,
    /// Lets `script` steps run.
    pub allow_scripts: bool,
    /// Keeps `http` steps from loopback and private addresses.
    pub deny_private_targets: bool,
    /// Drops data that cannot be read and writes a loss report. The program does so before it starts the
    /// node.
    pub repair: bool,
    /// Serves the endpoints below `/test/`, by which tests provoke failures.
    pub test_hooks: bool,
    /// Defaults that move to a free value where they are taken.
    pub auto_assign: AutoAssign,
}

/// Selects the defaults that move to a free value when another node on the machine has them
/// already, so that a first trial needs no flags but `--join`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AutoAssign {
    /// The API moves to the next free port.
    pub api_addr: bool,
    /// The node address moves to the next free port.
    pub node_addr: bool,
    /// The data directory moves to `./data-2`, `./data-3`, ...
    pub data_dir: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            api_addr: (Ipv4Addr::LOCALHOST, API_PORT).into(),
            node_addr: (Ipv4Addr::LOCALHOST, NODE_PORT).into(),
            advertise_addr: None,
            data_dir: "./data".into(),
            join: Vec::new(),
            join_token: None,
            region: Region::default(),
            labels: BTreeMap::new(),
            admin_token: None,
            insecure: false,
            api_hosts: Vec::new(),
            request_timeout: Duration::from_secs(5),
            heartbeat_interval: Duration::from_secs(30),
            unhealthy_after: Duration::from_secs(30),
            election_timeout: Duration::from_millis(500),
            default_tenant: None,
            allow_scripts: false,
            deny_private_targets: false,
            repair: false,
            test_hooks: false,
            auto_assign: AutoAssign::default(),
        }
    }
}

/// Names a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefaultTenant {
    /// By its id.
    Id(TenantId),
    /// By its name: the oldest that has it. It is made where there is none.
    Name(String),
}

/// Rejects values that are valid by themselves and not together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No other node could dial this one.
    #[error(
        "--node-addr {0} cannot be dialled by other nodes: set --advertise-addr to a host:port that \
         can"
    )]
    Unreachable(SocketAddr),
    /// Script steps are not implemented yet.
    #[error("this version of shiioo performs no script steps; start without --allow-scripts")]
    Scripts,
    /// Other machines could do anything through the API.
    #[error(
        "--api-addr {0} would open the API to other machines without a credential: set \
         --admin-token, or listen on loopback, or accept the risk with --insecure"
    )]
    OpenApi(SocketAddr),
}

impl Config {
    /// Checks the rules that span several settings.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.node_addr.ip().is_unspecified() && self.advertise_addr.is_none() {
            return Err(ConfigError::Unreachable(self.node_addr));
        }
        if self.allow_scripts {
            return Err(ConfigError::Scripts);
        }
        let guarded = self.admin_token.is_some() || self.insecure;
        if !guarded && !self.api_addr.ip().to_canonical().is_loopback() {
            return Err(ConfigError::OpenApi(self.api_addr));
        }
        Ok(())
    }

    /// Returns the names under which requests may reach the API beside its loopback names: those
    /// given, and the address at which the API listens. A web page cannot take over an address, as
    /// it can a name.
    pub fn own_api_hosts(&self) -> Vec<String> {
        let listens_at = self.api_addr.ip();
        let own = (!listens_at.is_unspecified()).then(|| listens_at.to_string());
        self.api_hosts.iter().cloned().chain(own).collect()
    }
}

/// Configures the log of the process. Not part of [`Config`]: a process has one log, however many
/// nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Directives of `tracing_subscriber::EnvFilter`.
    pub filter: String,
    /// Form of a line.
    pub format: LogFormat,
}

/// Names the form of a line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Holds a text that must not get into logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// Returns the secret.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_that_others_reach_is_guarded_or_meant_to_be_open() {
        for (addr, token, insecure, allowed) in [
            ("127.0.0.1:3000", false, false, true),
            ("127.8.8.8:0", false, false, true),
            ("[::1]:3000", false, false, true),
            ("[::ffff:127.0.0.1]:3000", false, false, true),
            ("0.0.0.0:3000", false, false, false),
            ("[::]:3000", false, false, false),
            ("192.168.0.7:3000", false, false, false),
            ("0.0.0.0:3000", true, false, true),
            ("[::]:3000", false, true, true),
            ("192.168.0.7:3000", true, true, true),
        ] {
            let config = Config {
                api_addr: addr.parse().unwrap(),
                admin_token: token.then(|| Secret::new("t")),
                insecure,
                ..Config::default()
            };
            assert_eq!(config.check().is_ok(), allowed, "{addr} {token} {insecure}");
        }
    }

    #[test]
    fn an_address_that_nobody_can_dial_needs_another_beside_it() {
        let mut config = Config { node_addr: "0.0.0.0:7400".parse().unwrap(), ..Config::default() };
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains("--advertise-addr") && !error.contains('\n'), "{error}");
        config.advertise_addr = Some("host-1:7400".into());
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = Config { admin_token: Some(Secret::new("sesame")), ..Config::default() };
        assert!(!format!("{config:?}").contains("sesame"));
    }
}
