//! Finding the program under test, and building it when it is not there yet.
//!
//! `cargo test --workspace` builds the binary of package `shiioo` for that package's own tests
//! only, and `cargo test -p tests` does not build it at all. So the first test of a process asks
//! cargo for it, with the profile that the test itself was built with.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Names an already built program; nothing is built then.
pub const BINARY_VARIABLE: &str = "SHIIOO_TEST_BIN";

/// The program under test, built at the first call of a process.
pub fn path() -> &'static Path {
    // A failure is kept as well: not every test of a file has to fail to build again.
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| match std::env::var_os(BINARY_VARIABLE) {
        Some(given) => Ok(PathBuf::from(given)),
        None => build(),
    });
    built.as_ref().unwrap_or_else(|error| panic!("{error}"))
}

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace")
}

/// `cargo` as it runs now, or as it was when this was compiled.
pub fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut command = Command::new(program);
    command.current_dir(workspace());
    // What cargo says of this test's own package is a change to build scripts that ask for such variables:
    // some crates would be built anew, and all that depend on them.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_PKG_") {
            command.env_remove(&*name);
        }
    }
    command
}

fn build() -> Result<PathBuf, String> {
    let profile_dir = profile_dir();
    let profile = profile_dir.file_name().and_then(|name| name.to_str()).expect("a profile");
    // Test programs may run side by side: one builds, the others wait here and find it fresh.
    let lock = File::create(profile_dir.join(".tests-build.lock")).expect("create the build lock");
    lock.lock().expect("take the build lock");
    let mut command = cargo();
    command.args(["build", "--quiet", "-p", "shiioo", "--bin", "shiioo", "--target-dir"]);
    command.arg(profile_dir.parent().expect("a target directory"));
    if profile != "debug" {
        command.args(["--profile", profile]);
    }
    let status = command.status().expect("run cargo");
    if status.success() {
        Ok(profile_dir.join("shiioo"))
    } else {
        Err(format!("cargo build -p shiioo failed: {status}"))
    }
}

/// `target/<profile>`, of which this very program is a part.
fn profile_dir() -> PathBuf {
    let program = std::env::current_exe().expect("the path of this program");
    let mut folder = program.parent().expect("a folder");
    if folder.ends_with("deps") || folder.ends_with("examples") {
        folder = folder.parent().expect("a profile folder");
    }
    folder.to_owned()
}
