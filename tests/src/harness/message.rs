//! HTTP/1.1 as bytes: where a message ends, at little cost.

/// The head of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    /// Where the body begins.
    pub(crate) body: usize,
    /// How long the body is, where the head says so.
    pub(crate) length: Option<usize>,
    /// Whether the body comes in pieces instead.
    pub(crate) is_chunked: bool,
}

impl Head {
    /// None as long as it is not whole.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let mut head = Self { body: end + 4, length: None, is_chunked: false };
        for line in bytes[..end].split(|byte| *byte == b'\n') {
            if let Some(value) = value_of(line, b"content-length:") {
                head.length = std::str::from_utf8(value).ok().and_then(|it| it.trim().parse().ok());
                break;
            }
            head.is_chunked |= value_of(line, b"transfer-encoding:").is_some();
        }
        Some(head)
    }
}

/// The status code of an answer.
pub(crate) fn status(answer: &[u8]) -> Option<u16> {
    let code = answer.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    std::str::from_utf8(code).ok()?.parse().ok()
}

fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (own, value) = line.split_at_checked(name.len())?;
    own.eq_ignore_ascii_case(name).then_some(value)
}
