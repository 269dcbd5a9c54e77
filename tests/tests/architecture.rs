//! The arrows between the rooms, and the size of what is in them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
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
const FILE_LINES_MAX: usize = 700;

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
                if lines > FILE_LINES_MAX {
                    too_long.push(format!("{}: {lines} lines", path.display()));
                }
            }
        }
    }
    assert!(seen > ARROWS.len(), "the sources were found");
    assert!(too_long.is_empty(), "at most {FILE_LINES_MAX} lines a file: {too_long:#?}");
}
