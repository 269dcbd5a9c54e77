//! The arrows between the crates and between the folders in them, and the size of files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use tests::arrows::{self, Arrow, Sources};
use tests::{binary, files};

/// Which technology may be named in which crate only.
const OWNERS: [(&str, &[&str]); 4] = [
    ("shiioo-api", &["axum"]),
    ("shiioo-transport", &["quinn"]),
    ("shiioo-storage", &["redb", "openraft"]),
    ("shiioo-actors", &["ractor"]),
];
/// Which of ours each production crate may import, dependencies of its tests included.
const ARROWS: [(&str, &[&str]); 5] = [
    ("shiioo-actors", &[]),
    ("shiioo-storage", &["shiioo-actors"]),
    ("shiioo-transport", &["shiioo-actors"]),
    ("shiioo-api", &["shiioo-actors"]),
    ("shiioo", &["shiioo-actors", "shiioo-api", "shiioo-storage", "shiioo-transport"]),
];
/// The folders of a crate, from the bottom up: a file names only what is in its own folder or in one
/// that stands before it here. A name without a folder is a file of the root. A folder is listed whole,
/// or by each folder in it.
const FLOORS: [(&str, &[&str]); 7] = [
    (
        "shiioo-actors",
        &[
            "mutants.rs",
            "domain",
            "command",
            "ports",
            "testing.rs",
            "state",
            "replica",
            "cluster",
            "services",
            "handles",
            "node",
        ],
    ),
    (
        "shiioo-storage",
        &[
            "disk",
            "executor.rs",
            "index",
            "log",
            "raft",
            "under_way.rs",
            "stopped.rs",
            "aside.rs",
            "inspect.rs",
        ],
    ),
    ("shiioo-transport", &["sockets", "pki", "quic", "join", "http", "testing.rs"]),
    ("shiioo-api", &["output", "input", "docs", "server", "request", "forward", "routes"]),
    (
        "shiioo",
        &[
            "client_threads.rs",
            "seams.rs",
            "config",
            "identity",
            "sockets.rs",
            "known_members.rs",
            "default_tenant.rs",
            "own_log.rs",
            "joining.rs",
            "replacement.rs",
            "dispatch.rs",
            "wiring",
            "node",
            "recovery",
            "repair",
            "cli",
        ],
    ),
    (
        "simulations",
        &["plan.rs", "env", "facts.rs", "checks", "world", "workload", "run", "script", "cli"],
    ),
    ("tests", &["harness", "arrows", "load", "soak", "bin"]),
];
/// Where nothing waits and nothing is looked at but what is given.
const PURE: [(&str, &[&str]); 1] = [("shiioo-actors", &["domain", "command", "state"])];
/// Crates that what is pure does not name.
const IMPURE: [&str; 9] = [
    "tokio",
    "ractor",
    "tracing_subscriber",
    "shiioo_storage",
    "shiioo_transport",
    "shiioo_api",
    "axum",
    "quinn",
    "openraft",
];
/// The longest file of a product crate, lines, with the tests inside it.
const FILE_LINES_MAX: usize = 500;
/// The longest file of nothing but tests.
const TEST_FILE_LINES_MAX: usize = 650;

struct Package {
    manifest: String,
    dependencies: BTreeSet<String>,
}

/// The packages of the workspace with their direct dependencies of every kind.
fn packages() -> BTreeMap<String, Package> {
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let output = binary::cargo().args(arguments).output().expect("run cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let package = |package: &Value| {
        let dependencies = package["dependencies"].as_array().expect("dependencies");
        let dependencies = dependencies.iter().map(|dependency| text(&dependency["name"]));
        let manifest = text(&package["manifest_path"]);
        (text(&package["name"]), Package { manifest, dependencies: dependencies.collect() })
    };
    metadata["packages"].as_array().expect("packages").iter().map(package).collect()
}

#[test]
fn arrows_point_at_the_actors() {
    let packages = packages();
    let ours: BTreeSet<String> = packages.keys().cloned().collect();
    for (name, allowed) in ARROWS {
        let package = &packages[name];
        let mut imported: BTreeSet<_> = package.dependencies.intersection(&ours).cloned().collect();
        // A crate's tests may name the crate itself, to turn on a feature of it.
        imported.remove(name);
        let allowed: BTreeSet<_> = allowed.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(imported, allowed, "{name} imports exactly these of ours");
    }
}

#[test]
fn each_technology_has_exactly_one_owner() {
    let packages = packages();
    for (owner, technologies) in OWNERS {
        for technology in technologies {
            let users = packages.iter().filter(|(_, package)| {
                // `openraft` stands for its family: the runtime adapters as well.
                let family = format!("{technology}-");
                let mut names = package.dependencies.iter();
                names.any(|name| name == technology || name.starts_with(&family))
            });
            let users: Vec<_> = users.map(|(name, _)| name.as_str()).collect();
            assert_eq!(users, [owner], "{technology} is named in its owner only");
        }
    }
}

#[test]
fn no_production_file_is_longer_than_a_person_reads() {
    let packages = packages();
    let mut too_long = Vec::new();
    let mut seen = 0;
    for (name, _) in ARROWS {
        let folder = Path::new(&packages[name].manifest).parent().expect("a folder");
        for (path, _) in files::walk(folder) {
            if path.extension().is_some_and(|extension| extension == "rs") {
                let lines = files::read(&path).lines().count();
                seen += 1;
                let is_test = path.to_string_lossy().contains("tests");
                if lines > if is_test { TEST_FILE_LINES_MAX } else { FILE_LINES_MAX } {
                    too_long.push(format!("{}: {lines} lines", path.display()));
                }
            }
        }
    }
    assert!(seen > ARROWS.len(), "the sources were found");
    assert!(
        too_long.is_empty(),
        "more lines than {FILE_LINES_MAX}, or {TEST_FILE_LINES_MAX} in tests: {too_long:#?}"
    );
}

fn sources(packages: &BTreeMap<String, Package>, name: &str) -> Sources {
    let folder = Path::new(&packages[name].manifest).parent().expect("a folder");
    Sources::read(&folder.join("src"))
}

/// Whether a file is the root of a crate, which gathers all floors.
fn is_root(file: &str) -> bool {
    ["lib.rs", "main.rs"].contains(&file)
}

/// The floor that a file stands on.
fn floor(file: &str, floors: &[&str]) -> Option<usize> {
    let stands_in = |floor: &&str| {
        let rest = file.strip_prefix(*floor);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || rest == ".rs")
    };
    floors.iter().position(stands_in)
}

#[test]
fn folders_import_downwards_only() {
    let packages = packages();
    let mut wrong = Vec::new();
    for (name, floors) in FLOORS {
        let sources = sources(&packages, name);
        for (file, _) in sources.texts().filter(|(file, _)| !is_root(file)) {
            assert!(floor(file, floors).is_some(), "{name}: {file} is on no floor of {floors:?}");
        }
        let arrows = sources.arrows();
        assert!(arrows.len() > floors.len(), "{name}: the arrows were found");
        let is_upward = |arrow: &&Arrow| {
            !is_root(&arrow.from) && floor(&arrow.from, floors) < floor(&arrow.to, floors)
        };
        wrong.extend(arrows.iter().filter(is_upward).map(|arrow| format!("{name}: {arrow}")));
    }
    assert!(wrong.is_empty(), "these name what stands above them: {wrong:#?}");
}

#[test]
fn files_of_different_folders_form_no_circle() {
    let packages = packages();
    let mut wrong = Vec::new();
    for (name, _) in FLOORS {
        let sources = sources(&packages, name);
        let all: BTreeSet<&str> = sources.texts().map(|(file, _)| file).collect();
        let found = sources.arrows();
        for circle in arrows::circles(&found) {
            let inside = found.iter().filter(|arrow| {
                circle.contains(arrow.from.as_str()) && circle.contains(arrow.to.as_str())
            });
            let between = inside.filter(|arrow| {
                arrows::folder(&arrow.from, &all) != arrows::folder(&arrow.to, &all)
            });
            let between: Vec<_> = between.map(|arrow| format!("{name}: {arrow}")).collect();
            wrong.extend((!between.is_empty()).then_some(between));
        }
    }
    assert!(wrong.is_empty(), "these folders need each other: {wrong:#?}");
}

#[test]
fn what_is_pure_names_nothing_that_waits() {
    let packages = packages();
    let mut wrong = Vec::new();
    for (name, folders) in PURE {
        let sources = sources(&packages, name);
        for (file, text) in sources.texts().filter(|(file, _)| floor(file, folders).is_some()) {
            let named = IMPURE.iter().filter(|impure| text.contains(&format!("{impure}::")));
            wrong.extend(named.map(|impure| format!("{name}: {file} names {impure}")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
