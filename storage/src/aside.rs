//! Moves what a node has of its groups aside, when it goes on as another member.

use std::io;

use shiioo_actors::domain::region::Region;

use crate::disk::{Disk, create_dir_durably};
use crate::index::{SYSTEM_INDEX, tenants_dir};
use crate::log::LOG_DIR;

/// Moves the log, the control plane's index and the folders of the region's tenants into a folder below the
/// data directory, durably. What is moved already stays where it is.
///
/// # Errors
/// When the system says no; some of it may have been moved.
pub fn set_data_aside(disk: &dyn Disk, region: &Region, folder: &str) -> io::Result<()> {
    create_dir_durably(disk, folder)?;
    // The log last: as long as it is where it was, what is beside it belongs to it.
    for path in [SYSTEM_INDEX, tenants_dir(region).as_str(), LOG_DIR] {
        if disk.exists(path)? {
            disk.rename(path, &format!("{folder}/{path}"))?;
        }
    }
    disk.sync_dir(folder)?;
    disk.sync_dir("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{OpenMode, SimDisk};

    #[test]
    fn everything_is_moved_once_and_what_comes_later_is_not_there() {
        let disk = SimDisk::new(1);
        let mounted = disk.mount();
        let put = |path: &str| {
            create_dir_durably(&*mounted, crate::disk::parent(path)).unwrap();
            mounted.open(path, OpenMode::CreateNew).unwrap().sync_data().unwrap();
        };
        let paths =
            ["log/0000000001.log", "system.redb", "tenants/t/index.redb", "identity/node.json"];
        paths.into_iter().for_each(put);
        for _ in 0..2 {
            set_data_aside(&*mounted, &Region::default(), "replaced-3").unwrap();
        }
        disk.cut_power();
        let mounted = disk.mount();
        let is_there = |path: &str| mounted.exists(path).unwrap();
        for path in ["log", "system.redb", "tenants"] {
            assert!(!is_there(path) && is_there(&format!("replaced-3/{path}")), "{path}");
        }
        assert!(is_there("identity"));
    }
}
