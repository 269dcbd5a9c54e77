//! Where damage of the log has to be noticed: what the simulator needs to know to judge a node whose
//! disk rots.

use super::record;
use super::segment::{self, Head};
use crate::disk::SimDisk;

/// Up to where damage to a segment has to be noticed: to the beginning of the last batch in it. The
/// batch itself has no witness, and looks like a torn write when it is damaged. 0 for what is no
/// segment, and for one that is being written.
pub fn witnessed_log_bytes(disk: &SimDisk, path: &str) -> u64 {
    let number = path.rsplit('/').next().and_then(segment::number);
    let (Some(number), Some(bytes)) = (number, disk.settled(path)) else { return 0 };
    let Head::Good { len: mut offset, .. } = segment::read_head(number, &bytes) else { return 0 };
    let mut witnessed = 0;
    while let Some(framed) = record::read_frame(number, &bytes, offset) {
        witnessed = framed.batch;
        offset = framed.payload.end;
    }
    witnessed.into()
}
