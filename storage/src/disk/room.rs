//! How much of a disk may be taken by what can be done without: copies that other replicas send.

use std::io;

use super::Disk;

/// The part of the disk that copies leave to the log: one in so many ...
const LOG_ROOM_DIVISOR: u64 = 16;

/// ... and at least so much, bytes: a log that has less takes no more writes, of any group.
pub(crate) const LOG_ROOM_BYTES_MIN: u64 = 4 << 20;

/// ... and at most so much, bytes: more than the log writes between two looks at what is left.
const LOG_ROOM_BYTES_MAX: u64 = 20 << 20;

/// Tells how many bytes copies may still take: what is free, less what the log is to have.
///
/// # Errors
/// When the system does not say.
pub(crate) fn room_for_copies(disk: &dyn Disk) -> io::Result<u64> {
    // A disk that does not tell its size is written to as a large one is.
    let size = disk.size().unwrap_or(u64::MAX);
    let kept = (size / LOG_ROOM_DIVISOR).clamp(LOG_ROOM_BYTES_MIN, LOG_ROOM_BYTES_MAX);
    Ok(disk.free()?.saturating_sub(kept))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{OpenMode, SimDisk};

    #[test]
    fn copies_leave_room_for_the_log() {
        let disk = SimDisk::new(1);
        let mounted = disk.mount();
        assert!(room_for_copies(&*mounted).unwrap() > 1 << 60, "a disk without a bound");
        mounted.open("a", OpenMode::CreateNew).unwrap().write_at(0, &[1; 300]).unwrap();
        for (capacity, kept) in
            [(1 << 40, LOG_ROOM_BYTES_MAX), (160 << 20, 10 << 20), (8 << 20, LOG_ROOM_BYTES_MIN)]
        {
            disk.set_capacity(Some(capacity));
            assert_eq!(room_for_copies(&*mounted).unwrap(), capacity - 300 - kept);
        }
        disk.set_capacity(Some(0));
        assert_eq!(room_for_copies(&*mounted).unwrap(), 0);
    }
}
