//! Settings as people write them: the same names as flags, in the environment and in a TOML file.
//! A flag wins over the environment, that over the file, and that over the default.
//!
//! The three layers are texts first and are turned into values once they are laid over each other,
//! so that a value is judged by one rule wherever it came from, and the error says where that was.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tracing_subscriber::EnvFilter;

use super::parse::{self, Parsed};
use super::{Config, Yields};

/// The file that is read when it is there and no other is named.
const DEFAULT_FILE: &str = "shiioo.toml";
/// Names another file.
const FILE_VARIABLE: &str = "SHIIOO_CONFIG";
/// Labels a node may have.
const LABELS_MAX: usize = 64;
/// Members that may be named to join.
const JOIN_MAX: usize = 64;
/// Names that the API may have.
const API_HOSTS_MAX: usize = 64;

/// One layer of settings, as written. Every field is absent where nothing was said.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where the HTTP API listens; port 0 takes any free one [env: SHIIOO_API_ADDR] [default:
    /// 127.0.0.1:3000]
    #[arg(long, value_name = "ADDR")]
    pub api_addr: Option<String>,

    /// Where this node talks with the others, UDP; port 0 takes any free one [env:
    /// SHIIOO_NODE_ADDR] [default: 127.0.0.1:7400]
    #[arg(long, value_name = "ADDR")]
    pub node_addr: Option<String>,

    /// What the others dial [env: SHIIOO_ADVERTISE_ADDR] [default: the node address]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise_addr: Option<String>,

    /// Everything that the node keeps [env: SHIIOO_DATA_DIR] [default: ./data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,

    /// Node address of any member of the cluster to join; repeat, or separate by commas [env:
    /// SHIIOO_JOIN]
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    #[serde(deserialize_with = "one_or_more")]
    pub join: Vec<String>,

    /// Secret that admits a new member [env: SHIIOO_JOIN_TOKEN]
    #[arg(long, value_name = "TOKEN")]
    pub join_token: Option<String>,

    /// Placement region [env: SHIIOO_REGION] [default: default]
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,

    /// Metadata of the node; repeat for more
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,

    /// Credential that management calls need [env: SHIIOO_ADMIN_TOKEN]
    #[arg(long, value_name = "TOKEN")]
    pub admin_token: Option<String>,

    /// Lets the API listen beyond loopback without an admin token
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true
    )]
    pub insecure: Option<bool>,

    /// Name or address that the API may be asked by without an admin token, beside localhost and
    /// the loopback addresses; repeat, or separate by commas [env: SHIIOO_API_HOST]
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    #[serde(deserialize_with = "one_or_more")]
    pub api_host: Vec<String>,

    /// How long a request waits for an owner [default: 5s]
    #[arg(long, value_name = "TIME")]
    pub request_timeout: Option<String>,

    /// How often nodes registered over HTTP are told to send a heartbeat, at most; a third of
    /// `--unhealthy-after` where that is less [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub heartbeat_interval: Option<String>,

    /// How long such a node may be silent [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub unhealthy_after: Option<String>,

    /// From a leader's last heartbeat to the campaign against it, at most [default: 500ms]
    #[arg(long, value_name = "TIME")]
    pub election_timeout: Option<String>,

    /// Lets `script` steps run
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true
    )]
    pub allow_scripts: Option<bool>,

    /// Keeps `http` steps from loopback and private addresses
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true
    )]
    pub deny_private_targets: Option<bool>,

    /// Drops what cannot be read in the data directory and writes a loss report
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true
    )]
    pub repair: Option<bool>,

    /// Serves the endpoints below `/test/`
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true,
        hide = true
    )]
    pub test_hooks: Option<bool>,

    /// What to log: a level, or directives as in `info,shiioo=debug` [env: RUST_LOG] [default:
    /// info]
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,

    /// How to log: `text` or `json` [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// How the program logs. Not part of [`Config`]: a process has one log, however many nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Directives of `tracing_subscriber::EnvFilter`.
    pub filter: String,
    /// Form of a line.
    pub format: LogFormat,
}

/// Form of a line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct SettingError {
    place: String,
    reason: String,
}

/// What the settings are read from, besides the flags.
pub struct Sources<'a> {
    /// The variable of a name.
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
    /// The contents of a file.
    pub read: &'a dyn Fn(&Path) -> io::Result<String>,
}

/// Lays flags over environment over file over defaults. `file` is the one named by a flag.
///
/// # Errors
/// The first setting that cannot be used, or the file.
pub fn resolve(
    flags: Settings,
    file: Option<PathBuf>,
    sources: &Sources<'_>,
) -> Result<(Config, LogConfig), SettingError> {
    let env = from_env(sources.env)?;
    let (file, file_name) = from_file(file, sources)?;
    let layers = Layers { flags, env, file, file_name };
    Ok((layers.config()?, layers.log()?))
}

fn from_env(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Settings, SettingError> {
    let text = |name: &str| variable(env, name);
    let of = |setting: &str| text(&variable_name(setting));
    let list = |setting: &str| {
        let texts =
            of(setting)?.map(|text| text.split(',').map(|it| it.trim().to_owned()).collect());
        Ok(texts.unwrap_or_default())
    };
    Ok(Settings {
        api_addr: of("api_addr")?,
        node_addr: of("node_addr")?,
        advertise_addr: of("advertise_addr")?,
        data_dir: of("data_dir")?,
        join: list("join")?,
        join_token: of("join_token")?,
        region: of("region")?,
        admin_token: of("admin_token")?,
        api_host: list("api_host")?,
        log: of("log")?,
        ..Settings::default()
    })
}

/// A variable of the environment. An empty one counts as absent: that is how a variable is unset
/// in the files of container tools.
fn variable(
    env: &dyn Fn(&str) -> Option<OsString>,
    name: &str,
) -> Result<Option<String>, SettingError> {
    let Some(value) = env(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    let not_text = |_| SettingError { place: name.to_owned(), reason: "is not UTF-8".to_owned() };
    value.into_string().map(Some).map_err(not_text)
}

fn variable_name(setting: &str) -> String {
    match setting {
        "log" => "RUST_LOG".to_owned(),
        _ => format!("SHIIOO_{}", setting.to_ascii_uppercase()),
    }
}

/// The settings of the file and its name.
fn from_file(
    named: Option<PathBuf>,
    sources: &Sources<'_>,
) -> Result<(Settings, String), SettingError> {
    let named = match named {
        Some(path) => Some(path),
        None => variable(sources.env, FILE_VARIABLE)?.map(PathBuf::from),
    };
    let path = named.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    let name = path.display().to_string();
    let fail = |reason: String| SettingError { place: name.clone(), reason };
    let text = match (sources.read)(&path) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(fail(format!("cannot read the configuration file: {error}"))),
    };
    match toml::from_str(&text) {
        Ok(settings) => Ok((settings, name)),
        Err(error) => {
            // Only the line and the reason: the text around it may hold a token.
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
            Err(fail(format!("line {line}: {}", error.message().trim())))
        }
    }
}

struct Layers {
    flags: Settings,
    env: Settings,
    file: Settings,
    file_name: String,
}

impl Layers {
    fn config(&self) -> Result<Config, SettingError> {
        let default = Config::default();
        let api_addr = self.value("api_addr", |it| &it.api_addr, parse::socket_addr)?;
        let node_addr = self.value("node_addr", |it| &it.node_addr, parse::socket_addr)?;
        let data_dir = self.value("data_dir", |it| &it.data_dir, parse::path)?;
        let join = self.list("join", JOIN_MAX, |it| &it.join, parse::host_port)?;
        let yields = Yields {
            api_addr: api_addr.is_none() && !join.is_empty(),
            node_addr: node_addr.is_none() && !join.is_empty(),
            data_dir: data_dir.is_none() && !join.is_empty(),
        };
        let labels: BTreeMap<_, _> =
            self.list("label", LABELS_MAX, |it| &it.label, parse::label)?.into_iter().collect();
        Ok(Config {
            api_addr: api_addr.unwrap_or(default.api_addr),
            node_addr: node_addr.unwrap_or(default.node_addr),
            advertise_addr: self.value(
                "advertise_addr",
                |it| &it.advertise_addr,
                parse::host_port,
            )?,
            data_dir: data_dir.unwrap_or(default.data_dir),
            join,
            join_token: self.value("join_token", |it| &it.join_token, parse::secret)?,
            region: self.value("region", |it| &it.region, parse::region)?.unwrap_or(default.region),
            labels,
            admin_token: self.value("admin_token", |it| &it.admin_token, parse::secret)?,
            insecure: self.switch(|it| it.insecure),
            api_hosts: self.list("api_host", API_HOSTS_MAX, |it| &it.api_host, parse::host)?,
            request_timeout: self
                .value("request_timeout", |it| &it.request_timeout, parse::request_timeout)?
                .unwrap_or(default.request_timeout),
            heartbeat_interval: self
                .value("heartbeat_interval", |it| &it.heartbeat_interval, parse::heartbeat)?
                .unwrap_or(default.heartbeat_interval),
            unhealthy_after: self
                .value("unhealthy_after", |it| &it.unhealthy_after, parse::heartbeat)?
                .unwrap_or(default.unhealthy_after),
            election_timeout: self
                .value("election_timeout", |it| &it.election_timeout, parse::election_timeout)?
                .unwrap_or(default.election_timeout),
            allow_scripts: self.switch(|it| it.allow_scripts),
            deny_private_targets: self.switch(|it| it.deny_private_targets),
            repair: self.switch(|it| it.repair),
            test_hooks: self.switch(|it| it.test_hooks),
            yields,
        })
    }

    fn log(&self) -> Result<LogConfig, SettingError> {
        let filter = self.value("log", |it| &it.log, log_filter)?;
        let format = self.value("log_format", |it| &it.log_format, log_format)?;
        Ok(LogConfig {
            filter: filter.unwrap_or_else(|| "info".into()),
            format: format.unwrap_or(LogFormat::Text),
        })
    }

    /// The value of a setting from the highest layer that has one.
    fn value<T>(
        &self,
        name: &str,
        get: impl Fn(&Settings) -> &Option<String>,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<Option<T>, SettingError> {
        for (settings, place) in self.places(name) {
            if let Some(text) = get(settings) {
                let fail = |reason| SettingError { place, reason };
                return parse(text).map(Some).map_err(fail);
            }
        }
        Ok(None)
    }

    /// A list, whole, from the highest layer that has one: lists are not joined.
    fn list<T>(
        &self,
        name: &str,
        max: usize,
        get: impl Fn(&Settings) -> &Vec<String>,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<Vec<T>, SettingError> {
        for (settings, place) in self.places(name) {
            let texts = get(settings);
            if texts.len() > max {
                let reason = format!("{} were given; at most {max} can be", texts.len());
                return Err(SettingError { place, reason });
            }
            if !texts.is_empty() {
                let fail = |reason| SettingError { place, reason };
                return texts
                    .iter()
                    .map(|text| parse(text))
                    .collect::<Result<_, _>>()
                    .map_err(fail);
            }
        }
        Ok(Vec::new())
    }

    fn switch(&self, get: impl Fn(&Settings) -> Option<bool>) -> bool {
        [&self.flags, &self.env, &self.file].into_iter().find_map(get).unwrap_or_default()
    }

    /// The layers, the highest first, and how a setting is called in each.
    fn places(&self, name: &str) -> [(&Settings, String); 3] {
        [
            (&self.flags, format!("--{}", name.replace('_', "-"))),
            (&self.env, variable_name(name)),
            (&self.file, format!("{name} in {}", self.file_name)),
        ]
    }
}

fn log_filter(text: &str) -> Parsed<String> {
    match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{text:?} is not what can be logged: {error}")),
    }
}

fn log_format(text: &str) -> Parsed<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("{text:?} is neither text nor json")),
    }
}

/// A list in TOML, or one text with commas, as on the command line.
fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct OneOrMore;

    impl<'de> Visitor<'de> for OneOrMore {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or a list of texts")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(text.split(',').map(|it| it.trim().to_owned()).collect())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut texts = Vec::new();
            while let Some(text) = list.next_element()? {
                texts.push(text);
            }
            Ok(texts)
        }
    }

    deserializer.deserialize_any(OneOrMore)
}
