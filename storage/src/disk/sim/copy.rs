//! What somebody does to a disk beside the program: copies, and files that are replaced.
//!
//! Files are replaced while the program does not run: a power cut comes first. What is put in their
//! place is durable at once.

use std::collections::BTreeMap;

use super::SimDisk;
use super::state::{File, Node, State, inode_of};
use crate::disk::parent;

/// A file or a directory with everything in it, as a program could read it at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskCopy {
    path: String,
    /// Bytes of files by whole path; `None` for a directory.
    nodes: BTreeMap<String, Option<Vec<u8>>>,
}

impl DiskCopy {
    /// Makes the copy of a path where there is nothing.
    pub fn nothing(path: &str) -> Self {
        Self { path: path.to_owned(), nodes: BTreeMap::new() }
    }

    /// Tells whether there was nothing.
    pub fn is_nothing(&self) -> bool {
        self.nodes.is_empty()
    }
}

impl SimDisk {
    /// Copies what a program would read at and below `path` now; `""` is the whole disk.
    pub fn copy(&self, path: &str) -> DiskCopy {
        let state = self.state();
        let copied = |(name, node): (&String, &Node)| {
            let file = inode_of(node).and_then(|inode| state.files.get(&inode));
            is_within(name, path).then(|| (name.clone(), file.map(|file| file.bytes.clone())))
        };
        let nodes = state.names.iter().filter_map(copied).collect();
        DiskCopy { path: path.to_owned(), nodes }
    }

    /// Cuts power, and puts a copy in the place of what is at its path. A copy of which the disk has
    /// no parent directory any more is left out.
    pub fn put_back(&self, copy: &DiskCopy) {
        let mut state = self.state();
        state.cut_power();
        if copy.path.is_empty() || state.require_dir(parent(&copy.path)).is_ok() {
            state.replace(copy);
        }
    }
}

impl State {
    fn replace(&mut self, copy: &DiskCopy) {
        // After a power cut names and durable names are the same. The root is never without a name.
        let (names, files) = (&mut self.names, &mut self.files);
        names.retain(|name, node| {
            let stays = name.is_empty() || !is_within(name, &copy.path);
            if let Some(inode) = inode_of(node).filter(|_| !stays) {
                files.remove(&inode);
            }
            stays
        });
        for (name, bytes) in &copy.nodes {
            let node = match bytes {
                None => Node::Dir,
                Some(bytes) => {
                    self.next_inode += 1;
                    let (bytes, durable) = (bytes.clone(), bytes.clone());
                    files.insert(self.next_inode, File { bytes, durable, pending: Vec::new() });
                    Node::File(self.next_inode)
                }
            };
            names.insert(name.clone(), node);
        }
        self.durable_names = names.clone();
    }
}

/// Tells whether a name is `path`, or that of something in it.
fn is_within(name: &str, path: &str) -> bool {
    let rest = name.strip_prefix(path);
    path.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::OpenMode;

    fn write(disk: &SimDisk, path: &str, bytes: &[u8]) {
        let mounted = disk.mount();
        mounted.create_dir_all(parent(path)).unwrap();
        mounted.open(path, OpenMode::OpenOrCreate).unwrap().write_at(0, bytes).unwrap();
    }

    fn read(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
        let file = disk.mount().open(path, OpenMode::Existing).ok()?;
        let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
        file.read_at(0, &mut bytes).unwrap();
        Some(bytes)
    }

    /// A disk with two files in `a/b` and one beside, all durable.
    fn made() -> SimDisk {
        let disk = SimDisk::new(1);
        for path in ["a/b/one", "a/b/two", "a/bc"] {
            write(&disk, path, b"1");
            disk.mount().open(path, OpenMode::Existing).unwrap().sync_data().unwrap();
        }
        for dir in ["", "a", "a/b"] {
            disk.mount().sync_dir(dir).unwrap();
        }
        disk
    }

    #[test]
    fn a_copy_that_is_put_back_is_durable_and_replaces_what_is_there() {
        let disk = made();
        let copy = disk.copy("a/b");
        write(&disk, "a/b/one", b"later");
        write(&disk, "a/b/three", b"3");
        let before = disk.mount();
        disk.put_back(&copy);
        assert!(before.exists("a").is_err(), "the program before is fenced");
        disk.cut_power();
        assert_eq!(read(&disk, "a/b/one"), Some(b"1".to_vec()));
        assert_eq!(read(&disk, "a/b/three"), None);
        assert_eq!(disk.copy("a/b"), copy);
    }

    #[test]
    fn nothing_in_the_place_of_a_directory_takes_it_and_nothing_else_away() {
        let disk = made();
        let whole = disk.copy("");
        disk.put_back(&DiskCopy::nothing("a/b"));
        disk.cut_power();
        assert!(disk.copy("a/b").is_nothing());
        assert_eq!(read(&disk, "a/bc"), Some(b"1".to_vec()));
        disk.put_back(&whole);
        assert_eq!(disk.copy(""), whole);
    }

    #[test]
    fn a_copy_without_a_place_is_left_out() {
        let disk = made();
        let copy = disk.copy("a/b");
        disk.put_back(&DiskCopy::nothing("a"));
        disk.put_back(&copy);
        assert_eq!(read(&disk, "a/b/one"), None);
    }
}
