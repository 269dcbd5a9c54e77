//! Pings and their answers as they travel, in the two versions that this program speaks.
//!
//! Members of the version before decline what they do not know, and are asked again in theirs: so the program can be
//! renewed node by node. An answer has the version of what it answers.

use tokio::time::Instant;

use super::failure_detector::Heartbeat;
use crate::domain::codec;
use crate::domain::ids::RaftId;
use crate::ports::seams::Clock;
use crate::ports::{PeerError, Peers, Service};

/// The shape of pings and their answers that this program speaks.
const VERSION: u16 = 4;
/// The shape before: it does not say whether a member lacks room for what others send.
const VERSION_BEFORE: u16 = 3;

/// Writes a ping or its answer.
pub(super) fn encode(version: u16, beat: &Heartbeat) -> Vec<u8> {
    if version == VERSION_BEFORE {
        return codec::encode(&(VERSION_BEFORE, beat));
    }
    codec::encode(&(VERSION, beat, beat.lacks_room_for_copy))
}

/// Reads a ping or its answer, and in which version it is.
pub(super) fn decode(bytes: &[u8]) -> Result<(u16, Heartbeat), String> {
    let garbled = |error: codec::DecodeError| error.to_string();
    let version: u16 = codec::decode_first(bytes).map_err(garbled)?;
    let beat = match version {
        VERSION_BEFORE => codec::decode::<(u16, Heartbeat)>(bytes).map_err(garbled)?.1,
        VERSION => {
            let (_, beat, lacks_room_for_copy) =
                codec::decode::<(u16, Heartbeat, bool)>(bytes).map_err(garbled)?;
            Heartbeat { lacks_room_for_copy, ..beat }
        }
        _ => return Err(format!("version {version} of heartbeats is not spoken here")),
    };
    Ok((version, beat))
}

/// Pings a member. Gives what it answers, and how far its clock is from this node's, milliseconds.
pub(super) async fn ping(
    peers: &dyn Peers,
    clock: &dyn Clock,
    to: RaftId,
    beat: &Heartbeat,
    deadline: Instant,
) -> Option<(Heartbeat, u64)> {
    for version in [VERSION, VERSION_BEFORE] {
        let (asked, sent) = (Instant::now(), clock.now());
        match peers.call(to, Service::Ping, encode(version, beat), deadline).await {
            Ok(answer) => {
                let (_, pong) = decode(&answer).ok()?;
                // After D. Mills, NTP (RFC 5905): the clock was read half a round trip ago.
                let there = asked.elapsed().as_millis() / 2;
                let expected = sent.plus_ms(u64::try_from(there).unwrap_or(0));
                let offset_ms = pong.at.0.abs_diff(expected.0);
                return Some((pong, offset_ms));
            }
            // It may be of the version before.
            Err(PeerError::Declined { .. }) => {}
            Err(_) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::domain::ids::GroupId;
    use crate::domain::time::Timestamp;
    use crate::ports::GroupLead;
    use crate::testing::{AnsweringPeers, At};

    /// A beat as a program of version 3 has it.
    type Before = (Timestamp, Vec<GroupLead>, BTreeMap<RaftId, u64>, bool, BTreeSet<GroupId>);

    fn before() -> Before {
        (Timestamp(7), Vec::new(), [(RaftId(2), 30)].into(), true, [GroupId(4)].into())
    }

    fn beat(lacks_room_for_copy: bool) -> Heartbeat {
        let (at, leads, silent_ms, has_room, damaged) = before();
        Heartbeat { at, leads, silent_ms, has_room, damaged, lacks_room_for_copy }
    }

    #[test]
    fn the_version_before_is_read_and_written_as_ever() {
        let bytes = codec::encode(&(3_u16, before()));
        assert_eq!(decode(&bytes), Ok((3, beat(false))));
        assert_eq!(encode(3, &beat(true)), bytes);
        for lacks in [false, true] {
            assert_eq!(decode(&encode(4, &beat(lacks))), Ok((4, beat(lacks))));
        }
        assert!(codec::decode::<(u16, Before)>(&encode(4, &beat(true))).is_err(), "it is declined");
        assert!(decode(&codec::encode(&(5_u16, before()))).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_of_the_version_before_is_asked_in_its_own() {
        // Member 3 speaks version 3 only, member 4 both, and nobody else is there.
        let calls_made = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&calls_made);
        let peers = AnsweringPeers(move |to: RaftId, ping: Vec<u8>| {
            counted.fetch_add(1, Ordering::Relaxed);
            match to.0 {
                3 => match codec::decode::<(u16, Before)>(&ping) {
                    Ok((3, said)) => Ok(codec::encode(&(3_u16, said))),
                    _ => Err(PeerError::Declined { to, why: "not known".to_owned() }),
                },
                4 => Ok(ping),
                _ => Err(PeerError::Unreachable { to, why: "not there".to_owned() }),
            }
        });
        for (to, heard, calls) in
            [(3, Some((beat(false), 2)), 2), (4, Some((beat(true), 2)), 1), (5, None, 1)]
        {
            let pong =
                ping(&peers, &At(Timestamp(9)), RaftId(to), &beat(true), Instant::now()).await;
            let calls_made = calls_made.swap(0, Ordering::Relaxed);
            assert_eq!((pong, calls_made), (heard, calls), "member {to}");
        }
    }
}
