//! Scripts in files, and the transcripts beside them.
#![allow(clippy::disallowed_methods, reason = "a tool that reads and writes its user's files")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use simulations::script::{self, Script};

/// Plays the scripts that the paths name. Tells whether all came to what their transcripts say.
pub fn play(paths: &[PathBuf], bless: bool, trace: bool) -> bool {
    let mut good = true;
    let files = match find(paths) {
        Ok(files) => files,
        Err(error) => {
            eprintln!("the scripts cannot be read: {error}");
            return false;
        }
    };
    for file in files {
        match play_one(&file, bless, trace) {
            Ok(()) => println!("{}: as its transcript says", file.display()),
            Err(why) => {
                println!("{}: {why}", file.display());
                good = false;
            }
        }
    }
    good
}

fn find(paths: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            for entry in fs::read_dir(path)? {
                found.push(entry?.path());
            }
            found.retain(|path| path.extension().is_some_and(|extension| extension == "story"));
        } else {
            found.push(path.clone());
        }
    }
    found.sort();
    Ok(found)
}

fn play_one(file: &Path, bless: bool, trace: bool) -> Result<(), String> {
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    let script = Script::parse(&text).map_err(|error| error.to_string())?;
    let told = script::tell(&script, trace);
    told.trace.lines.iter().for_each(|line| println!("{line}"));
    if let Some(violation) = told.violation {
        return Err(format!("BROKEN: {violation}\n{}", told.transcript));
    }
    let transcript = file.with_extension("transcript");
    if bless {
        return fs::write(&transcript, &told.transcript).map_err(|error| error.to_string());
    }
    let expected = fs::read_to_string(&transcript).unwrap_or_default();
    if expected == told.transcript {
        return Ok(());
    }
    let lines = expected.lines().zip(told.transcript.lines());
    let same = lines.take_while(|(one, other)| one == other).count();
    let transcript = transcript.display();
    Err(format!("not as {transcript} says from line {} on:\n{}", same + 1, told.transcript))
}
