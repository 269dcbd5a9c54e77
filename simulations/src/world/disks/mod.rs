//! The disks of the nodes: what is on them, and what is lost, rots or grows old there.

pub(super) mod autopsy;
pub(super) mod copies;
pub(super) mod deletions;
pub(super) mod files;
pub(super) mod folders;
pub(super) mod losses;
