//! The layout of requests and answers between nodes: bytes in, bytes out, no socket.
//!
//! A stream carries one request and its answer, each a head of a fixed length and a payload:
//!
//! | request | answer | bytes |
//! |---|---|---|
//! | version, [`VERSION`] | version | 1 |
//! | number of the service | [`Status`] | 1 |
//! | time the caller still waits, ms | | 4 |
//! | length of the payload | length of the payload | 4 |
//!
//! - Numbers are little-endian.
//! - A length is compared with its limit before memory is allocated for it.
//! - Any bytes are accepted as input: they parse as a head or are a [`FrameError`], nothing panics.

/// Version of the layout: the first byte of every head.
pub(crate) const VERSION: u8 = 0xC1;
/// Length of a request's head, bytes.
pub(crate) const REQUEST_HEAD_BYTES: usize = 10;
/// Length of an answer's head, bytes.
pub(crate) const ANSWER_HEAD_BYTES: usize = 6;
/// Service number of a request to join. No service of members has this number.
pub(crate) const JOIN_SERVICE: u8 = 0;
/// Longest request to join and longest answer to it, bytes.
pub(crate) const JOIN_MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Rejects a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// The other end uses another version of the layout.
    #[error("the other end uses version {0:#04x} of the frames, this node version {VERSION:#04x}")]
    Version(u8),
    /// The answer's status has no meaning here.
    #[error("the answer has status {0}, which this version does not know")]
    Status(u8),
    /// The payload is longer than its limit.
    #[error("a payload of {bytes} bytes is longer than the limit of {bytes_max}")]
    TooLong {
        /// Length that the head states.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
}

/// Describes the payload of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestHead {
    /// Number of the service.
    pub service: u8,
    /// Time that the caller still waits, ms.
    pub time_left_ms: u32,
    /// Length of the payload.
    pub bytes: usize,
}

/// Tells how a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    /// The request was served: the payload is the answer.
    Done = 0,
    /// The request was declined before it had any effect: the payload is the reason, in UTF-8.
    Declined = 1,
}

/// Describes the payload of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AnswerHead {
    /// Tells how the request ended.
    pub status: Status,
    /// Length of the payload.
    pub bytes: usize,
}

impl RequestHead {
    /// Encodes the head.
    ///
    /// # Errors
    /// When the payload is longer than `bytes_max`.
    pub fn encode(self, bytes_max: usize) -> Result<[u8; REQUEST_HEAD_BYTES], FrameError> {
        let length = encode_length(self.bytes, bytes_max)?;
        let mut head = [0; REQUEST_HEAD_BYTES];
        head[0] = VERSION;
        head[1] = self.service;
        head[2..6].copy_from_slice(&self.time_left_ms.to_le_bytes());
        head[6..].copy_from_slice(&length);
        Ok(head)
    }

    /// Decodes a head that was received.
    ///
    /// # Errors
    /// When it is of another version or announces more than `bytes_max`.
    pub fn decode(head: [u8; REQUEST_HEAD_BYTES], bytes_max: usize) -> Result<Self, FrameError> {
        let [version, service, p0, p1, p2, p3, length @ ..] = head;
        check_version(version)?;
        let time_left_ms = u32::from_le_bytes([p0, p1, p2, p3]);
        Ok(Self { service, time_left_ms, bytes: decode_length(length, bytes_max)? })
    }
}

impl AnswerHead {
    /// Encodes the head.
    ///
    /// # Errors
    /// When the payload is longer than `bytes_max`.
    pub fn encode(self, bytes_max: usize) -> Result<[u8; ANSWER_HEAD_BYTES], FrameError> {
        let length = encode_length(self.bytes, bytes_max)?;
        let mut head = [0; ANSWER_HEAD_BYTES];
        head[0] = VERSION;
        head[1] = self.status as u8;
        head[2..].copy_from_slice(&length);
        Ok(head)
    }

    /// Decodes a head that was received.
    ///
    /// # Errors
    /// When it is of another version, has no known status or announces more than `bytes_max`.
    pub fn decode(head: [u8; ANSWER_HEAD_BYTES], bytes_max: usize) -> Result<Self, FrameError> {
        let [version, status, length @ ..] = head;
        check_version(version)?;
        let status = match status {
            0 => Status::Done,
            1 => Status::Declined,
            other => return Err(FrameError::Status(other)),
        };
        Ok(Self { status, bytes: decode_length(length, bytes_max)? })
    }
}

const fn check_version(version: u8) -> Result<(), FrameError> {
    if version == VERSION { Ok(()) } else { Err(FrameError::Version(version)) }
}

fn encode_length(bytes: usize, bytes_max: usize) -> Result<[u8; 4], FrameError> {
    match u32::try_from(bytes) {
        Ok(length) if bytes <= bytes_max => Ok(length.to_le_bytes()),
        _ => Err(FrameError::TooLong { bytes, bytes_max }),
    }
}

fn decode_length(length: [u8; 4], bytes_max: usize) -> Result<usize, FrameError> {
    let bytes = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if bytes <= bytes_max { Ok(bytes) } else { Err(FrameError::TooLong { bytes, bytes_max }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shiioo_actors::ports::PEER_MESSAGE_BYTES_MAX;

    use super::*;

    proptest! {
        #[test]
        fn requests_survive_their_bytes(
            service: u8, time_left_ms: u32, bytes in 0..=PEER_MESSAGE_BYTES_MAX,
        ) {
            let head = RequestHead { service, time_left_ms, bytes };
            let sent = head.encode(PEER_MESSAGE_BYTES_MAX).unwrap();
            prop_assert_eq!(RequestHead::decode(sent, PEER_MESSAGE_BYTES_MAX), Ok(head));
        }

        #[test]
        fn answers_survive_their_bytes(
            declined: bool, bytes in 0..=PEER_MESSAGE_BYTES_MAX,
        ) {
            let status = if declined { Status::Declined } else { Status::Done };
            let head = AnswerHead { status, bytes };
            let sent = head.encode(PEER_MESSAGE_BYTES_MAX).unwrap();
            prop_assert_eq!(AnswerHead::decode(sent, PEER_MESSAGE_BYTES_MAX), Ok(head));
        }

        #[test]
        fn any_bytes_are_judged_and_no_length_passes_its_limit(
            request: [u8; REQUEST_HEAD_BYTES], answer: [u8; ANSWER_HEAD_BYTES], ours: bool,
            bytes_max in 0..=PEER_MESSAGE_BYTES_MAX,
        ) {
            let (mut request, mut answer) = (request, answer);
            if ours {
                (request[0], answer[0]) = (VERSION, VERSION);
            }
            match RequestHead::decode(request, bytes_max) {
                Ok(head) => {
                    prop_assert!(head.bytes <= bytes_max);
                    prop_assert_eq!(head.encode(bytes_max), Ok(request));
                }
                Err(FrameError::Version(version)) => prop_assert_ne!(version, VERSION),
                Err(error) => {
                    let too_long = matches!(error, FrameError::TooLong { .. });
                    prop_assert!(too_long, "{error}");
                }
            }
            if let Ok(head) = AnswerHead::decode(answer, bytes_max) {
                prop_assert!(head.bytes <= bytes_max);
                prop_assert_eq!(head.encode(bytes_max), Ok(answer));
            }
        }
    }

    #[test]
    fn too_much_is_not_announced() {
        let head = RequestHead { service: 1, time_left_ms: 0, bytes: 11 };
        let error = FrameError::TooLong { bytes: 11, bytes_max: 10 };
        assert_eq!(head.encode(10), Err(error));
        assert_eq!(RequestHead::decode(head.encode(11).unwrap(), 10), Err(error));
    }
}
