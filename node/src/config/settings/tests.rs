//! Settings from every source, and what is said of bad ones.

use std::time::Duration;

use super::super::{DefaultTenant, Secret};
use super::*;

type Resolved = Result<(Config, LogConfig), SettingError>;

fn resolved(flags: &[&str], env: &[(&str, &str)], file: Option<&str>) -> Resolved {
    let flags = flags::command().try_get_matches_from([&["shiioo"], flags].concat()).unwrap();
    let sources = Sources {
        env: &|name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()),
        read: &|path| match file {
            Some(text) if path == Path::new("shiioo.toml") => Ok(text.to_owned()),
            _ => Err(io::ErrorKind::NotFound.into()),
        },
    };
    resolve(&flags, &sources)
}

fn refused(flags: &[&str], env: &[(&str, &str)], file: Option<&str>) -> String {
    let error = resolved(flags, env, file).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn a_flag_wins_over_environment_over_file_over_default() {
    let flag = &["--region", "flag", "--join=a:1,b:2", "--join", "c:3", "--log=error"][..];
    let env = &[("SHIIOO_REGION", "env"), ("SHIIOO_JOIN", "d:4, e:5"), ("RUST_LOG", "warn")][..];
    let file = Some("region = 'file'\njoin = ['f:6']\nlog = 'debug'");
    for (flag, env, file, region, join, log) in [
        (flag, env, file, "flag", &["a:1", "b:2", "c:3"][..], "error"),
        (flag, &[], None, "flag", &["a:1", "b:2", "c:3"], "error"),
        (&[], env, file, "env", &["d:4", "e:5"], "warn"),
        (&[], &[], file, "file", &["f:6"], "debug"),
        (&[], &[("SHIIOO_REGION", ""), ("RUST_LOG", "")], None, "default", &[], "info"),
    ] {
        let (config, logs) = resolved(flag, env, file).unwrap();
        assert_eq!((config.region.as_str(), logs.filter.as_str()), (region, log));
        assert_eq!(config.join, join);
    }
}

#[test]
fn nothing_said_is_the_default() {
    let (config, log) = resolved(&[], &[], None).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(log.format, LogFormat::Text);
}

#[test]
fn every_setting_is_the_same_in_a_file_as_on_the_command_line() {
    let file = "
        api_addr = '0.0.0.0:1'
        node_addr = '0.0.0.0:2'
        advertise_addr = 'n:3'
        data_dir = 'd'
        join = 'a:1,b:2'
        join_token = 'jt'
        region = 'r'
        default_tenant = 'Team A'
        label = ['k=v', 'l=w,x']
        admin_token = 'at'
        insecure = true
        api_host = ['a.example', '::1']
        request_timeout = '1s'
        heartbeat_interval = '2s'
        unhealthy_after = '3s'
        election_timeout = '4s'
        allow_scripts = true
        deny_private_targets = true
        repair = true
        test_hooks = true
        log = 'shiioo=debug'
        log_format = 'json'
    ";
    let flags = [
        "--api-addr=0.0.0.0:1",
        "--node-addr=0.0.0.0:2",
        "--advertise-addr=n:3",
        "--data-dir=d",
        "--join=a:1,b:2",
        "--join-token=jt",
        "--region=r",
        "--default-tenant=Team A",
        "--label=k=v",
        "--label=l=w,x",
        "--admin-token=at",
        "--insecure",
        "--api-host=a.example",
        "--api-host=[::1]",
        "--request-timeout=1s",
        "--heartbeat-interval=2s",
        "--unhealthy-after=3s",
        "--election-timeout=4s",
        "--allow-scripts",
        "--deny-private-targets",
        "--repair",
        "--test-hooks",
        "--log=shiioo=debug",
        "--log-format=json",
    ];
    // Every value is written out here, and no two that could be mistaken for each other are alike:
    // comparing the two ways with each other alone says nothing about where a value goes.
    let expected = Config {
        api_addr: "0.0.0.0:1".parse().unwrap(),
        node_addr: "0.0.0.0:2".parse().unwrap(),
        advertise_addr: Some("n:3".into()),
        data_dir: "d".into(),
        join: vec!["a:1".into(), "b:2".into()],
        join_token: Some(Secret::new("jt")),
        region: "r".to_owned().try_into().unwrap(),
        labels: [("k".into(), "v".into()), ("l".into(), "w,x".into())].into(),
        admin_token: Some(Secret::new("at")),
        api_hosts: vec!["a.example".into(), "::1".into()],
        insecure: true,
        request_timeout: Duration::from_secs(1),
        heartbeat_interval: Duration::from_secs(2),
        unhealthy_after: Duration::from_secs(3),
        election_timeout: Duration::from_secs(4),
        default_tenant: Some(DefaultTenant::Name("Team A".into())),
        allow_scripts: true,
        deny_private_targets: true,
        repair: true,
        test_hooks: true,
        auto_assign: AutoAssign::default(),
    };
    let log = LogConfig { filter: "shiioo=debug".into(), format: LogFormat::Json };
    assert_eq!(resolved(&[], &[], Some(file)).unwrap(), (expected.clone(), log.clone()));
    assert_eq!(resolved(&flags, &[], None).unwrap(), (expected, log));
    let (config, _) = resolved(&["--insecure=false"], &[], Some(file)).unwrap();
    assert!(!config.insecure, "a flag can take back what the file says");
}

#[test]
fn each_switch_turns_one_thing_on() {
    type Switch = (&'static str, fn(&mut Config) -> &mut bool);
    let switches: [Switch; 5] = [
        ("insecure", |it| &mut it.insecure),
        ("allow-scripts", |it| &mut it.allow_scripts),
        ("deny-private-targets", |it| &mut it.deny_private_targets),
        ("repair", |it| &mut it.repair),
        ("test-hooks", |it| &mut it.test_hooks),
    ];
    for (name, switch) in switches {
        let mut expected = Config::default();
        *switch(&mut expected) = true;
        let flag = format!("--{name}");
        assert_eq!(resolved(&[&flag], &[], None).unwrap().0, expected, "{name}");
        let file = format!("{} = true", name.replace('-', "_"));
        assert_eq!(resolved(&[], &[], Some(&file)).unwrap().0, expected, "{name}");
    }
}

#[test]
fn a_default_gives_way_only_to_a_node_that_joins_and_only_where_it_is_one() {
    let none = AutoAssign::default();
    let all = AutoAssign { api_addr: true, node_addr: true, data_dir: true };
    for (flags, auto_assign) in [
        (&[][..], none),
        (&["--join=a:1"][..], all),
        (&["--join=a:1", "--api-addr=127.0.0.1:1"], AutoAssign { api_addr: false, ..all }),
        (&["--join=a:1", "--node-addr=127.0.0.1:1"], AutoAssign { node_addr: false, ..all }),
        (&["--join=a:1", "--data-dir=d"], AutoAssign { data_dir: false, ..all }),
        (&["--data-dir=d"], none),
    ] {
        assert_eq!(resolved(flags, &[], None).unwrap().0.auto_assign, auto_assign, "{flags:?}");
    }
}

#[test]
fn lists_are_as_long_as_they_may_be() {
    let members = |count: u32| (1..=count).map(|port| format!("a:{port}")).collect::<Vec<_>>();
    let join = members(64).join(",");
    assert_eq!(resolved(&["--join", &join], &[], None).unwrap().0.join, members(64));
    let error = refused(&["--join", &members(65).join(",")], &[], None);
    assert!(error.contains("65") && error.contains("64"), "{error}");
    let labels = |count: u32| (0..count).map(|n| format!("--label=k{n}=v")).collect::<Vec<_>>();
    let given = labels(64);
    let flags: Vec<&str> = given.iter().map(String::as_str).collect();
    assert_eq!(resolved(&flags, &[], None).unwrap().0.labels.len(), 64);
    let given = labels(65);
    let flags: Vec<&str> = given.iter().map(String::as_str).collect();
    assert!(refused(&flags, &[], None).contains("65"));
}

#[test]
fn every_variable_is_read() {
    let env = [
        ("SHIIOO_API_ADDR", "127.0.0.1:1"),
        ("SHIIOO_NODE_ADDR", "127.0.0.1:2"),
        ("SHIIOO_ADVERTISE_ADDR", "n:3"),
        ("SHIIOO_DATA_DIR", "d"),
        ("SHIIOO_JOIN", "a:1"),
        ("SHIIOO_JOIN_TOKEN", "jt"),
        ("SHIIOO_REGION", "r"),
        ("SHIIOO_ADMIN_TOKEN", "at"),
        ("SHIIOO_API_HOST", "a.example, 10.0.0.1"),
    ];
    let expected = Config {
        api_addr: "127.0.0.1:1".parse().unwrap(),
        node_addr: "127.0.0.1:2".parse().unwrap(),
        advertise_addr: Some("n:3".into()),
        data_dir: "d".into(),
        join: vec!["a:1".into()],
        join_token: Some(Secret::new("jt")),
        region: "r".to_owned().try_into().unwrap(),
        admin_token: Some(Secret::new("at")),
        api_hosts: vec!["a.example".into(), "10.0.0.1".into()],
        ..Config::default()
    };
    assert_eq!(resolved(&[], &env, None).unwrap().0, expected);
}

#[test]
fn a_name_of_the_api_is_a_host_without_more() {
    let (config, _) =
        resolved(&["--api-host=a_b.example.", "--api-addr=10.0.0.1:1", "--insecure"], &[], None)
            .unwrap();
    assert_eq!(config.own_api_hosts(), ["a_b.example.", "10.0.0.1"]);
    for bad in ["http://a", "a:3000", "[::1]:3000", "a/b", "*", "a b", "[a]"] {
        let error = refused(&["--api-host", bad], &[], None);
        assert!(
            error.starts_with("--api-host: ") && error.contains("is not a host name"),
            "{error}"
        );
    }
}

#[test]
fn an_error_says_where_the_setting_is() {
    let error = refused(&["--api-addr", "x"], &[("SHIIOO_API_ADDR", "y")], None);
    assert!(error.starts_with("--api-addr: \"x\" is not"), "{error}");
    let error = refused(&[], &[("SHIIOO_API_ADDR", "y")], None);
    assert!(error.starts_with("SHIIOO_API_ADDR: \"y\" is not"), "{error}");
    let error = refused(&[], &[], Some("election_timeout = 'z'"));
    assert!(error.starts_with("election_timeout in shiioo.toml: \"z\" is not"), "{error}");
    let error = refused(&[], &[("RUST_LOG", "shiioo=loud")], None);
    assert!(error.starts_with("RUST_LOG: "), "{error}");
}

#[test]
fn a_bad_file_is_refused_by_line_and_without_its_text() {
    let error = refused(&[], &[], Some("region = 'r'\n\nregoin = 'sesame'"));
    assert!(error.starts_with("shiioo.toml: line 3: unknown field `regoin`"), "{error}");
    assert!(!error.contains("sesame"));
    let error = refused(&[], &[], Some("admin_token = 'sesame"));
    assert!(error.starts_with("shiioo.toml: line 1: ") && !error.contains("sesame"), "{error}");
    let error = refused(&[], &[("SHIIOO_CONFIG", "other.toml")], Some(""));
    assert!(error.starts_with("other.toml: cannot read"), "{error}");
}
