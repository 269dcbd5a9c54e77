//! A file system of its own that is soon full.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Name of the file that fills it, below its root.
const FILLER: &str = "filler";

/// A file system in memory of a given size. Dropping it takes it away.
pub struct SmallDisk {
    root: PathBuf,
}

impl SmallDisk {
    /// Mounts one at a folder, which is made. An error says what is not permitted here.
    pub fn mount(root: &Path, mebibytes: u32) -> io::Result<Self> {
        std::fs::create_dir_all(root)?;
        let (path, size) = (c_path(root)?, CString::new(format!("size={mebibytes}m"))?);
        let kind = c"tmpfs".as_ptr();
        // SAFETY: all four are strings that end with a zero, and outlive the call.
        let mounted = unsafe { libc::mount(kind, path.as_ptr(), kind, 0, size.as_ptr().cast()) };
        match mounted {
            0 => Ok(Self { root: root.to_owned() }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        let mut filler = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.root.join(FILLER))
            .expect("a file to fill the disk with");
        for block in [1 << 20, 1 << 12, 1] {
            let block = vec![b'x'; block];
            while filler.write_all(&block).is_ok() {}
        }
    }

    /// Makes room for so many bytes.
    pub fn free(&self, bytes: u64) {
        let filler = OpenOptions::new().write(true).open(self.root.join(FILLER));
        let filler: File = filler.expect("the file that fills the disk");
        let len = filler.metadata().expect("its length").len();
        filler.set_len(len.saturating_sub(bytes)).expect("a shorter one");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Ok(path) = c_path(&self.root) {
            // SAFETY: a string that ends with a zero. Files that are still open keep it until then.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
