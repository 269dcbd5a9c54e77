//! `shiioo recover`: tells what a recovery by force would do, or does it.

use std::io::{self, Write as _};
use std::process::ExitCode;

use super::{USAGE, fail};
use crate::recovery::{self, RecoverError};
use crate::{ClientThreads, Config, NodeSeams};

/// Runs the command on the data directory of `config`. Without force it changes nothing, and ends as
/// a command line does that lacks something.
pub(super) async fn recover(config: Config, is_forced: bool) -> ExitCode {
    let dir = config.data_dir;
    // Before the seams are made, which make a directory that is missing.
    if !dir.is_dir() {
        return fail(1, &RecoverError::NoMember(dir).to_string());
    }
    let recovered = match NodeSeams::real(&dir, ClientThreads::Shared) {
        Ok(seams) => recovery::recover(&dir, &seams, is_forced).await,
        Err(error) => return fail(1, &format!("cannot use {}: {error}", dir.display())),
    };
    let report = match recovered {
        Ok(report) => report,
        Err(error) => return fail(1, &error.to_string()),
    };
    let shown = dir.display();
    let (what, code) = if is_forced {
        let file = report.file();
        let next = format!(
            "Done. The report is in {shown}/{file}. Start this node: shiioo --data-dir {shown}\nThen \
             let new nodes join, with empty data directories. Never start a former member on its own.\n"
        );
        (next, ExitCode::SUCCESS)
    } else {
        let next = format!(
            "Nothing was changed. If the members that are given up are gone for good, and no other \
             that is left has later entries, do it with: shiioo recover --force --data-dir {shown}\n"
        );
        (next, ExitCode::from(USAGE))
    };
    let _ = io::stdout().write_all(format!("{report}{what}").as_bytes());
    code
}
