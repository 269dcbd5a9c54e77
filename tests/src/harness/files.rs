//! What the node leaves on disk, read from outside.

use std::path::{Path, PathBuf};

use outside::checks;
use serde_json::Value;

/// A file's text.
pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("read {path:?}: {error}"))
}

/// A file's bytes.
pub fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("read {path:?}: {error}"))
}

/// Writes a whole file.
pub fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("write {path:?}: {error}"));
}

/// All files below a folder, to be put back later.
pub fn keep(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    walk(folder).into_iter().map(|(path, _)| (path.clone(), bytes(&path))).collect()
}

/// Puts files back where they were, with their folder.
pub fn put_back(folder: &Path, files: &[(PathBuf, Vec<u8>)]) {
    std::fs::create_dir_all(folder).unwrap_or_else(|error| panic!("make {folder:?}: {error}"));
    for (path, bytes) in files {
        std::fs::write(path, bytes).unwrap_or_else(|error| panic!("write {path:?}: {error}"));
    }
}

/// Writes a whole file of any bytes.
pub fn write_bytes(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap_or_else(|error| panic!("write {path:?}: {error}"));
}

/// Flips a bit of the byte that `place` points at, and gives what the file holds then.
pub fn flip(path: &Path, place: impl FnOnce(&[u8]) -> usize) -> Vec<u8> {
    let mut bytes = bytes(path);
    let at = place(&bytes);
    bytes[at] ^= 1;
    write_bytes(path, &bytes);
    bytes
}

/// Removes a file.
pub fn remove_file(path: &Path) {
    std::fs::remove_file(path).unwrap_or_else(|error| panic!("remove {path:?}: {error}"));
}

/// Moves a file or a folder.
pub fn rename(from: &Path, to: &Path) {
    std::fs::rename(from, to).unwrap_or_else(|error| panic!("move {from:?}: {error}"));
}

/// Removes a folder with all that is in it.
pub fn remove(folder: &Path) {
    std::fs::remove_dir_all(folder).unwrap_or_else(|error| panic!("remove {folder:?}: {error}"));
}

/// Copies a folder with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    for (file, _) in walk(from) {
        let target = to.join(file.strip_prefix(from).expect("a file below the folder"));
        std::fs::create_dir_all(target.parent().expect("a folder")).expect("make a folder");
        std::fs::copy(&file, &target).unwrap_or_else(|error| panic!("copy {file:?}: {error}"));
    }
}

/// The folder of a tenant in region `default`.
pub fn tenant(data: &Path, id: &str) -> PathBuf {
    data.join("tenants").join(id)
}

/// The names in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// All files below a folder, with their sizes. Files that vanish meanwhile are left out.
pub fn walk(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => found.extend(walk(&entry.path())),
            Ok(meta) => found.push((entry.path(), meta.len())),
            Err(_) => {}
        }
    }
    found.sort();
    found
}

/// The events of a tenant's log, which must be whole lines of JSON numbered 1, 2, 3, ...
///
/// An error says where the file is wrong. `Ok(None)`: the last line is not whole, which only a file
/// that is being written may show, and only for a moment.
pub fn events(path: &Path) -> Result<Option<Vec<Value>>, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{path:?}: {error}"))?;
    let parsed = checks::events::parse(&path.display().to_string(), &bytes);
    let (events, is_whole) = parsed.map_err(|broken| broken.to_string())?;
    Ok(is_whole.then_some(events))
}

/// The events of a tenant in region `default` whose node has stopped.
pub fn whole_events(data: &Path, id: &str) -> Vec<Value> {
    let path = tenant(data, id).join("events.jsonl");
    let events = events(&path).unwrap_or_else(|error| panic!("{error}"));
    events.unwrap_or_else(|| panic!("{path:?} does not end in a whole line"))
}

/// Puts `to` in the place of `from` in a tenant's event log, with checksums that are right: events that are
/// well-formed, and others than those that were written.
pub fn forge_events(path: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len(), "an index says where each event stands");
    let text = read(path);
    assert!(text.contains(from), "no {from} in {path:?}");
    let forge = |line: &str| {
        let (event, _) = line.rsplit_once(",\"crc32\":\"").expect("an event with a checksum");
        let event = event.replace(from, to);
        format!("{event},\"crc32\":\"{:08x}\"}}\n", crc32fast::hash(event.as_bytes()))
    };
    write(path, &text.lines().map(forge).collect::<String>());
}
