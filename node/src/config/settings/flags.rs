//! The settings as flags. This table is the only list of their names, variables and help texts: the
//! other layers take the names from here.

use std::ffi::OsString;

use clap::{Arg, ArgAction, Command, value_parser};

use crate::config::Config;

/// Names the configuration file. A flag, but not a setting: the file cannot name another.
pub(super) const CONFIG_FILE: &str = "config";

/// Names the command that goes on with one member alone.
pub const RECOVER: &str = "recover";
/// Names the flag without which `recover` changes nothing.
pub const FORCE: &str = "force";

/// Makes the command line of the program.
pub fn command() -> Command {
    Command::new("shiioo")
        .version(env!("CARGO_PKG_VERSION"))
        .about(
            "Many tenants' workflows and schedules on a small cluster: one binary, no database, no \
             broker, no coordinator. Without a command it starts a node.",
        )
        .arg(config_file())
        .args(settings())
        .subcommand(recover())
        // Else a data directory given before the command would not be the one that it takes.
        .args_conflicts_with_subcommands(true)
}

/// Makes the command that recovers by force. It takes the data directory from where a node takes it.
fn recover() -> Command {
    let shown = ["data-dir", "log", "log-format"];
    let settings = settings().into_iter().map(|setting| {
        let is_hidden = !shown.contains(&setting.get_id().as_str());
        setting.hide(is_hidden)
    });
    let force = Arg::new(FORCE).long(FORCE).action(ArgAction::SetTrue);
    Command::new(RECOVER)
        .about(
            "Goes on with the node of a data directory alone, as another cluster, after the others \
             are lost for good. Without --force it tells what would be lost, changes nothing, and \
             ends with code 2. The node must not run.",
        )
        .arg(config_file())
        .args(settings)
        .arg(force.help("Does it, and writes a report into the data directory"))
}

/// Makes the flag that names the configuration file.
pub(super) fn config_file() -> Arg {
    text(
        CONFIG_FILE,
        "FILE",
        "TOML file with the same names as the flags, with underscores [default: shiioo.toml if \
         there]",
    )
    .env("SHIIOO_CONFIG")
}

/// Makes the flags of all settings.
pub(super) fn settings() -> Vec<Arg> {
    addresses().into_iter().chain(cluster()).chain(access()).chain(behaviour()).collect()
}

fn addresses() -> [Arg; 4] {
    let Config { api_addr, node_addr, data_dir, .. } = Config::default();
    let api =
        format!("Where the HTTP API listens; port 0 takes any free one [default: {api_addr}]");
    let node = format!(
        "Where this node talks with the others, UDP; port 0 takes any free one [default: \
         {node_addr}]"
    );
    let data = format!("Everything that the node keeps [default: {}]", data_dir.display());
    [
        text("api-addr", "ADDR", api).env("SHIIOO_API_ADDR"),
        text("node-addr", "ADDR", node).env("SHIIOO_NODE_ADDR"),
        text("advertise-addr", "HOST:PORT", "What the others dial [default: the node address]")
            .env("SHIIOO_ADVERTISE_ADDR"),
        text("data-dir", "DIR", data).env("SHIIOO_DATA_DIR"),
    ]
}

fn cluster() -> [Arg; 5] {
    let region = format!("Placement region [default: {}]", Config::default().region);
    [
        comma_list(
            "join",
            "HOST:PORT",
            "Node address of any member of the cluster to join; repeat, or separate by commas",
        )
        .env("SHIIOO_JOIN"),
        text("join-token", "TOKEN", "Secret that admits a new member").env("SHIIOO_JOIN_TOKEN"),
        text("region", "REGION", region).env("SHIIOO_REGION"),
        text(
            "default-tenant",
            "TENANT",
            "Name or id of the tenant of requests at short paths that name none; made where the name is unknown",
        )
        .env("SHIIOO_DEFAULT_TENANT"),
        list("label", "KEY=VALUE", "Metadata of the node; repeat for more"),
    ]
}

fn access() -> [Arg; 3] {
    [
        text("admin-token", "TOKEN", "Credential that management calls need")
            .env("SHIIOO_ADMIN_TOKEN"),
        switch("insecure", "Lets the API listen beyond loopback without an admin token"),
        comma_list(
            "api-host",
            "HOST",
            "Name or address that the API may be asked by without an admin token, beside localhost \
             and the loopback addresses; repeat, or separate by commas",
        )
        .env("SHIIOO_API_HOST"),
    ]
}

fn behaviour() -> [Arg; 10] {
    let time = |name, help: &str, default| {
        let default = humantime::format_duration(default);
        text(name, "TIME", format!("{help} [default: {default}]"))
    };
    let default = Config::default();
    [
        time("request-timeout", "How long a request waits for an owner", default.request_timeout),
        time(
            "heartbeat-interval",
            "How often nodes registered over HTTP are told to send a heartbeat, at most; a third \
             of `--unhealthy-after` where that is less",
            default.heartbeat_interval,
        ),
        time("unhealthy-after", "How long such a node may be silent", default.unhealthy_after),
        time(
            "election-timeout",
            "From a leader's last heartbeat to the campaign against it, at most",
            default.election_timeout,
        ),
        switch("allow-scripts", "Lets `script` steps run"),
        switch("deny-private-targets", "Keeps `http` steps from loopback and private addresses"),
        switch(
            "repair",
            "Drops what cannot be read in the data directory and writes a loss report",
        ),
        switch("test-hooks", "Serves the endpoints below `/test/`").hide(true),
        text(
            "log",
            "LEVEL",
            "What to log: a level, or directives as in `info,shiioo=debug` [default: info]",
        )
        .env("RUST_LOG"),
        text("log-format", "FORMAT", "How to log: `text` or `json` [default: text]"),
    ]
}

/// Makes a flag with one value. Every value is a text for clap: [`parse`](crate::config::parse)
/// judges it, by the same rule in all layers.
fn text(name: &'static str, value: &'static str, help: impl Into<String>) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(value)
        .value_parser(value_parser!(OsString))
        .help(help.into())
        // A token in the environment must not be shown by `--help`.
        .hide_env_values(true)
}

/// Makes a flag that may be repeated.
fn list(name: &'static str, value: &'static str, help: &str) -> Arg {
    text(name, value, help).action(ArgAction::Append)
}

/// Makes a flag that may be repeated, or have its values separated by commas.
fn comma_list(name: &'static str, value: &'static str, help: &str) -> Arg {
    list(name, value, help).value_delimiter(',')
}

/// Makes a flag that is on or off. `=false` takes back what the file says.
fn switch(name: &'static str, help: &str) -> Arg {
    text(name, "BOOL", help)
        .value_parser(value_parser!(bool))
        .hide_possible_values(true)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
}

/// Returns whether a flag is on or off.
pub(super) fn is_switch(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|values| values.min_values() == 0)
}

/// Returns whether a flag may have several values.
pub(super) fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}
