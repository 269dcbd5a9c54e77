//! What lies on a disk.

use std::io;

use shiioo_storage::disk::{Disk, OpenMode};

/// Bytes in all files of a disk.
pub(in crate::world) fn used(disk: &dyn Disk) -> u64 {
    walk(disk, "").into_iter().map(|(_, len)| len).sum()
}

/// The paths of all files of a disk.
pub(in crate::world) fn paths(disk: &dyn Disk) -> Vec<String> {
    walk(disk, "").into_iter().map(|(path, _)| path).collect()
}

/// All files of a name, with their contents.
pub(in crate::world) fn read_all(
    disk: &dyn Disk,
    name: &str,
) -> io::Result<Vec<(String, Vec<u8>)>> {
    let named =
        walk(disk, "").into_iter().filter(|(path, _)| path.rsplit('/').next() == Some(name));
    named
        .map(|(path, len)| {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
            disk.open(&path, OpenMode::Existing)?.read_at(0, &mut bytes)?;
            Ok((path, bytes))
        })
        .collect()
}

/// All files below a directory, with their lengths.
pub(in crate::world) fn walk(disk: &dyn Disk, dir: &str) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for entry in disk.list(dir).unwrap_or_default() {
        let path =
            if dir.is_empty() { entry.name.clone() } else { format!("{dir}/{}", entry.name) };
        if entry.is_dir {
            found.extend(walk(disk, &path));
        } else {
            found.push((path, entry.len));
        }
    }
    found
}
