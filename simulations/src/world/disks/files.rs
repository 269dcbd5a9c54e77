//! What lies on a disk.

use std::io;

use shiioo_storage::disk::{Disk, OpenMode};

/// Bytes in all files of a disk.
pub(in crate::world) fn used(disk: &dyn Disk) -> u64 {
    walk(disk, "").into_iter().map(|(_, len)| len).sum()
}

/// What the folder begins with in which a node keeps what it had as another member.
const REPLACED: &str = "replaced-";

/// What the folder begins with that a tenant's files of another replica come to, below that of the tenants.
const STAGED: &str = "staged-";

/// Whether the node that the disk belongs to reads a file as its own.
fn is_used(path: &str) -> bool {
    !path.starts_with(REPLACED) && !path.split('/').any(|folder| folder.starts_with(STAGED))
}

/// The paths of all files of a disk that its node uses.
pub(in crate::world) fn paths(disk: &dyn Disk) -> Vec<String> {
    let paths = walk(disk, "").into_iter().map(|(path, _)| path);
    paths.filter(|path| is_used(path)).collect()
}

/// All files of a name that their node uses, with their contents.
pub(in crate::world) fn read_all(
    disk: &dyn Disk,
    name: &str,
) -> io::Result<Vec<(String, Vec<u8>)>> {
    let is_named = |path: &str| path.rsplit('/').next() == Some(name);
    let files = walk(disk, "").into_iter();
    files
        .filter(|(path, _)| is_named(path) && is_used(path))
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
