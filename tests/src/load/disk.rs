//! What the disk does at best: one synced append after the other.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use super::measure::Sample;

const APPEND_BYTES: usize = 4096;
/// It does not get faster later.
const TIME_MAX: Duration = Duration::from_secs(3);

pub(crate) fn synced_appends(folder: &Path, seconds: Duration) -> Sample {
    let path = folder.join("appends");
    let mut file =
        OpenOptions::new().create(true).append(true).open(&path).expect("create a file to append");
    let block = [7; APPEND_BYTES];
    let mut sample = Sample::default();
    let started = Instant::now();
    while started.elapsed() < seconds.min(TIME_MAX) {
        let before = Instant::now();
        file.write_all(&block).and_then(|()| file.sync_data()).expect("append and sync");
        sample.add(before.elapsed());
    }
    sample.elapsed = started.elapsed();
    std::fs::remove_file(&path).expect("remove the file");
    sample
}
