//! Settings as people write them: the same names as flags, in the environment and in a TOML file.
//! A flag wins over the environment, that over the file, and that over the default.
//!
//! clap reads the command line and knows the names ([`flags`]). The layers stay texts until they are
//! laid over each other, so that each value is judged by one rule wherever it came from, and an error
//! names the place that it came from. The environment is read through [`Sources`] and not by clap, so
//! that a test can set it.

pub mod flags;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches};
use toml::de::{DeTable, DeValue};

use super::parse::{self, Parsed};
use super::{AutoAssign, Config, LogConfig, LogFormat};

/// The file that is read when it is there and no other is named.
const DEFAULT_FILE: &str = "shiioo.toml";
/// Labels of a node, at most.
const LABELS_MAX: usize = 64;
/// Members that may be named to join.
const JOIN_MAX: usize = 64;
/// Names of the API, at most.
const API_HOSTS_MAX: usize = 64;

/// Rejects a setting, and names the place where it was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct SettingError {
    place: String,
    reason: String,
}

/// Reads the layers below the flags.
pub struct Sources<'a> {
    /// Returns a variable of the environment.
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
    /// Reads a file.
    pub read: &'a dyn Fn(&Path) -> io::Result<String>,
}

/// Holds the values of one setting as texts, and where they were given.
struct Given {
    place: String,
    texts: Vec<String>,
}

/// Maps the names of settings, as flags, to what was given for them.
type Layer = BTreeMap<String, Given>;

/// Lays flags over environment over file over defaults. `flags` are parsed by [`flags::command`].
///
/// # Errors
/// The first setting that cannot be used, or the file.
pub fn resolve(
    flags: &ArgMatches,
    sources: &Sources<'_>,
) -> Result<(Config, LogConfig), SettingError> {
    let settings = flags::settings();
    let environment = from_environment(&settings, sources.env)?;
    // The lowest layer first: what is given again replaces the whole setting, lists included.
    let mut given = from_file(&settings, named_file(flags, sources)?, sources.read)?;
    given.extend(environment);
    given.extend(from_flags(&settings, flags)?);
    let settings = Resolved(given);
    Ok((settings.config()?, settings.log()?))
}

fn from_flags(settings: &[Arg], flags: &ArgMatches) -> Result<Layer, SettingError> {
    let mut layer = Layer::new();
    for name in settings.iter().map(|setting| setting.get_id().as_str()) {
        // clap reads the process's environment as well: that layer is not taken from here.
        if flags.value_source(name) != Some(ValueSource::CommandLine) {
            continue;
        }
        let place = format!("--{name}");
        let texts = flags.get_raw(name).into_iter().flatten().map(|value| utf8(&place, value));
        let texts = texts.collect::<Result<_, _>>()?;
        layer.insert(name.to_owned(), Given { place, texts });
    }
    Ok(layer)
}

fn from_environment(
    settings: &[Arg],
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Layer, SettingError> {
    let mut layer = Layer::new();
    for setting in settings {
        if let Some((place, text)) = variable(setting, env)? {
            let texts = split(setting, &text);
            layer.insert(setting.get_id().to_string(), Given { place, texts });
        }
    }
    Ok(layer)
}

/// Reads the variable of a flag. An empty one counts as absent: that is how a variable is unset in the
/// files of container tools.
fn variable(
    flag: &Arg,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Option<(String, String)>, SettingError> {
    let Some(name) = flag.get_env().and_then(OsStr::to_str) else { return Ok(None) };
    let Some(value) = env(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    let text = utf8(name, &value)?;
    Ok(Some((name.to_owned(), text)))
}

fn utf8(place: &str, value: &OsStr) -> Result<String, SettingError> {
    let error = || SettingError { place: place.to_owned(), reason: "is not UTF-8".to_owned() };
    value.to_str().map(str::to_owned).ok_or_else(error)
}

/// Splits a text at the commas, if the setting is such a list.
fn split(setting: &Arg, text: &str) -> Vec<String> {
    match setting.get_value_delimiter() {
        Some(comma) => text.split(comma).map(|item| item.trim().to_owned()).collect(),
        None => vec![text.to_owned()],
    }
}

/// Returns the configuration file that a flag or the environment names.
fn named_file(flags: &ArgMatches, sources: &Sources<'_>) -> Result<Option<PathBuf>, SettingError> {
    let flag = flags.value_source(flags::CONFIG_FILE) == Some(ValueSource::CommandLine);
    if let Some(path) = flags.get_one::<OsString>(flags::CONFIG_FILE).filter(|_| flag) {
        return Ok(Some(path.into()));
    }
    let variable = variable(&flags::config_file(), sources.env)?;
    Ok(variable.map(|(_, text)| text.into()))
}

/// Reads the settings of a TOML file. Without a name the default file is read, if it is there.
fn from_file(
    settings: &[Arg],
    named: Option<PathBuf>,
    read: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Layer, SettingError> {
    let path = named.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    let name = path.display().to_string();
    let fail = |reason: String| SettingError { place: name.clone(), reason };
    let text = match read(&path) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(fail(format!("cannot read the configuration file: {error}"))),
    };
    // Errors give the line and the reason only: the text around them may hold a token.
    let fail_at = |at: usize, reason: &str| {
        let before = &text.as_bytes()[..at.min(text.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        fail(format!("line {line}: {reason}"))
    };
    let table = DeTable::parse(&text).map_err(|error| {
        fail_at(error.span().map_or(0, |span| span.start), error.message().trim())
    })?;
    let mut layer = Layer::new();
    for (key, value) in table.get_ref() {
        let has_name =
            |setting: &&Arg| setting.get_id().as_str().replace('-', "_") == **key.get_ref();
        let setting = settings.iter().find(has_name).ok_or_else(|| {
            let reason = format!(
                "unknown field `{}`: the settings are named like the flags, with underscores",
                key.get_ref()
            );
            fail_at(key.span().start, &reason)
        })?;
        let texts = file_texts(setting, value.get_ref()).map_err(|expected| {
            fail_at(value.span().start, &format!("`{}` is not {expected}", key.get_ref()))
        })?;
        // An empty list says nothing.
        if !texts.is_empty() {
            let place = format!("{} in {name}", key.get_ref());
            layer.insert(setting.get_id().to_string(), Given { place, texts });
        }
    }
    Ok(layer)
}

/// Reads the value of one setting; the error names the expected type.
fn file_texts(setting: &Arg, value: &DeValue<'_>) -> Result<Vec<String>, &'static str> {
    if flags::is_switch(setting) {
        return value.as_bool().map(|on| vec![on.to_string()]).ok_or("true or false");
    }
    match value {
        DeValue::Array(items) if flags::is_list(setting) => {
            let texts = items.iter().map(|item| item.get_ref().as_str().map(str::to_owned));
            texts.collect::<Option<_>>().ok_or("a list of texts")
        }
        DeValue::String(text)
            if !flags::is_list(setting) || setting.get_value_delimiter().is_some() =>
        {
            Ok(split(setting, text))
        }
        _ if flags::is_list(setting) => Err("a list of texts"),
        _ => Err("a text"),
    }
}

/// Holds what was given for each setting, in the highest layer that has it.
struct Resolved(Layer);

impl Resolved {
    fn config(&self) -> Result<Config, SettingError> {
        let default = Config::default();
        let api_addr = self.value("api-addr", parse::socket_addr)?;
        let node_addr = self.value("node-addr", parse::socket_addr)?;
        let data_dir = self.value("data-dir", parse::path)?;
        let join = self.list("join", JOIN_MAX, parse::host_port)?;
        let auto_assign = AutoAssign {
            api_addr: api_addr.is_none() && !join.is_empty(),
            node_addr: node_addr.is_none() && !join.is_empty(),
            data_dir: data_dir.is_none() && !join.is_empty(),
        };
        let duration = |name, parse: fn(&str) -> Parsed<_>, default| {
            self.value(name, parse).map(|given| given.unwrap_or(default))
        };
        Ok(Config {
            api_addr: api_addr.unwrap_or(default.api_addr),
            node_addr: node_addr.unwrap_or(default.node_addr),
            advertise_addr: self.value("advertise-addr", parse::host_port)?,
            data_dir: data_dir.unwrap_or(default.data_dir),
            join,
            join_token: self.value("join-token", parse::secret)?,
            region: self.value("region", parse::region)?.unwrap_or(default.region),
            labels: self.list("label", LABELS_MAX, parse::label)?.into_iter().collect(),
            admin_token: self.value("admin-token", parse::secret)?,
            insecure: self.switch("insecure")?,
            api_hosts: self.list("api-host", API_HOSTS_MAX, parse::host)?,
            request_timeout: duration(
                "request-timeout",
                parse::request_timeout,
                default.request_timeout,
            )?,
            heartbeat_interval: duration(
                "heartbeat-interval",
                parse::heartbeat,
                default.heartbeat_interval,
            )?,
            unhealthy_after: duration(
                "unhealthy-after",
                parse::heartbeat,
                default.unhealthy_after,
            )?,
            election_timeout: duration(
                "election-timeout",
                parse::election_timeout,
                default.election_timeout,
            )?,
            default_tenant: self.value("default-tenant", parse::default_tenant)?,
            allow_scripts: self.switch("allow-scripts")?,
            deny_private_targets: self.switch("deny-private-targets")?,
            repair: self.switch("repair")?,
            test_hooks: self.switch("test-hooks")?,
            auto_assign,
        })
    }

    fn log(&self) -> Result<LogConfig, SettingError> {
        let filter = self.value("log", parse::log_filter)?;
        let format = self.value("log-format", parse::log_format)?;
        Ok(LogConfig {
            filter: filter.unwrap_or_else(|| "info".into()),
            format: format.unwrap_or(LogFormat::Text),
        })
    }

    /// Parses a setting with one value.
    fn value<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<Option<T>, SettingError> {
        Ok(self.list(name, 1, parse)?.pop())
    }

    fn switch(&self, name: &str) -> Result<bool, SettingError> {
        Ok(self.value(name, parse::switch)?.unwrap_or_default())
    }

    /// Parses a list of at most `max` values.
    fn list<T>(
        &self,
        name: &str,
        max: usize,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<Vec<T>, SettingError> {
        let Some(Given { place, texts }) = self.0.get(name) else { return Ok(Vec::new()) };
        let fail = |reason| SettingError { place: place.clone(), reason };
        if texts.len() > max {
            return Err(fail(format!("{} were given; at most {max} can be", texts.len())));
        }
        texts.iter().map(|text| parse(text).map_err(fail)).collect()
    }
}
