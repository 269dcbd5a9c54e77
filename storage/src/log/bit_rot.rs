//! Tells the simulator where damage of the log has to be noticed, to judge a node whose disk rots.

use super::record;
use super::segment::{self, Head};
use crate::disk::SimDisk;

/// Gives the length of a segment up to which damage has to be noticed: the beginning of its last
/// batch. The last batch has no witness, and looks like a torn write when it is damaged. Gives 0
/// for a file that is no segment, and for a segment that is being written.
pub fn witnessed_log_bytes(disk: &SimDisk, path: &str) -> u64 {
    let number = path.rsplit('/').next().and_then(segment::number);
    let (Some(number), Some(bytes)) = (number, disk.settled(path)) else { return 0 };
    let Head::Valid { len: mut offset, .. } = segment::read_head(number, &bytes) else { return 0 };
    let mut witnessed = 0;
    while let Some(framed) = record::read_frame(number, &bytes, offset) {
        witnessed = framed.batch;
        offset = framed.payload.end;
    }
    witnessed.into()
}
