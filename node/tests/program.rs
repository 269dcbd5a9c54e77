//! The program as a person meets it: exit codes, the one line of an error, signals.
#![allow(clippy::disallowed_methods, reason = "a test of the real program over real files")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

fn shiioo(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shiioo"));
    command.current_dir(dir).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SHIIOO_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
}

const ANYWHERE: [&str; 4] = ["--api-addr", "127.0.0.1:0", "--node-addr", "127.0.0.1:0"];

/// Starts a node and waits for the last line of its banner. Answers with the banner.
fn ready(dir: &Path) -> (Child, String) {
    let mut child = shiioo(dir, &ANYWHERE).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut banner = String::new();
    while !banner.contains("\n  data ") {
        banner = banner + &lines.next().expect("a banner").unwrap() + "\n";
    }
    (child, banner)
}

fn send(signal: &str, child: &Child) {
    let status = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// The exit code of a program that ends by itself, and what it said on stderr.
fn refused(dir: &Path, arguments: &[&str]) -> (i32, String) {
    let output = shiioo(dir, arguments).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn signals_stop_a_node_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let mut identities = Vec::new();
    for signal in ["-TERM", "-INT"] {
        let (mut child, banner) = ready(dir.path());
        let file = std::fs::read_to_string(dir.path().join("data/node.json")).unwrap();
        let file: serde_json::Value = serde_json::from_str(&file).unwrap();
        assert!(banner.contains(file["node_id"].as_str().unwrap()), "{banner}");
        assert!(banner.contains(file["api_addr"].as_str().unwrap()), "{banner}");
        assert!(banner.contains(env!("CARGO_PKG_VERSION")), "{banner}");
        assert!(banner.contains("open to this machine only"), "{banner}");
        assert_eq!(file["pid"], child.id());
        identities.push(file["node_id"].clone());
        send(signal, &child);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
    assert_eq!(identities[0], identities[1]);
}

#[test]
fn a_killed_node_leaves_no_lock_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, _) = ready(dir.path());
    let (code, error) = refused(dir.path(), &ANYWHERE);
    assert_eq!((code, error.lines().count()), (1, 1), "{error}");
    assert!(error.contains("in use") && error.contains(&child.id().to_string()), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    let (mut child, _) = ready(dir.path());
    send("-TERM", &child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("stopping") && !log.contains('\u{1b}'), "no colour in a pipe: {log}");
}

#[test]
fn what_cannot_start_says_why_in_one_line_and_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let a_file = tempfile::NamedTempFile::new().unwrap();
    let a_file = a_file.path().to_str().unwrap();
    let below_it = &format!("{a_file}/below");
    for (arguments, code, expected) in [
        (&["--api-addr", "0.0.0.0:0"][..], 1, "--admin-token"),
        (&["--node-addr", "0.0.0.0:0"], 1, "--advertise-addr"),
        (&["--api-addr", "nowhere"], 2, "--api-addr: "),
        (&["--election-timeout", "1ms"], 2, "--election-timeout: "),
        (&["--config", "missing.toml"], 2, "missing.toml: "),
        (&["--log-format", "xml"], 2, "--log-format: "),
        (&["--data-dir", a_file], 1, a_file),
        (&["--data-dir", below_it], 1, a_file),
    ] {
        let (found, error) = refused(dir.path(), arguments);
        assert_eq!((found, error.lines().count()), (code, 1), "{error}");
        assert!(error.contains(expected), "{error}");
    }
    for argument in ["--no-such-flag", "no-such-command"] {
        let (code, error) = refused(dir.path(), &[argument]);
        assert!(code == 2 && !error.is_empty(), "{code}: {error}");
    }
    assert_eq!(refused(dir.path(), &["--version"]).0, 0);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_file_beside_the_program_is_read() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("shiioo.toml"), "regoin = 'x'").unwrap();
    let (code, error) = refused(dir.path(), &[]);
    assert_eq!(code, 2);
    assert!(error.contains("shiioo.toml: line 1: unknown field `regoin`"), "{error}");
}

#[test]
fn a_variable_is_named_in_its_error_and_its_value_is_not_in_the_help() {
    let dir = tempfile::tempdir().unwrap();
    let output = shiioo(dir.path(), &ANYWHERE).env("SHIIOO_REGION", "UP").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), error.lines().count()), (Some(2), 1), "{error}");
    assert!(error.contains("SHIIOO_REGION: \"UP\" is not a region"), "{error}");
    let output =
        shiioo(dir.path(), &["--help"]).env("SHIIOO_JOIN_TOKEN", "sesame").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(help.contains("SHIIOO_JOIN_TOKEN") && !help.contains("sesame"), "{help}");
    assert!(help.contains("--api-addr") && !help.contains("--test-hooks"), "hooks are for tests");
}
