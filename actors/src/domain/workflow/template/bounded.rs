//! Writers that stop at a limit.

use std::fmt;
use std::io;

use serde_json::Value;

use super::{TemplateError, too_long};

/// A buffer that refuses to grow beyond its limit.
pub(super) struct Bounded {
    pub(super) bytes: Vec<u8>,
    pub(super) limit: usize,
    pub(super) full: bool,
}

impl Bounded {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, full: false }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        self.full |= bytes.len() > self.limit - self.bytes.len();
        if !self.full {
            self.bytes.extend_from_slice(bytes);
        }
        !self.full
    }
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.push(text.as_bytes()) { Ok(()) } else { Err(fmt::Error) }
    }
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.push(bytes) { Ok(bytes.len()) } else { Err(io::ErrorKind::FileTooLarge.into()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts what is written and keeps nothing.
pub(super) struct Counted {
    limit: usize,
    left: usize,
}

impl Counted {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, left: limit }
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> usize {
        self.limit - self.left
    }

    /// Counts bytes.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), TemplateError> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| too_long(self.limit))?;
        Ok(())
    }

    /// Counts the text of a value.
    pub(super) fn write(&mut self, value: &Value) -> Result<(), TemplateError> {
        let limit = self.limit;
        // Its only failure is that there is no room.
        serde_json::to_writer(self, value).map_err(|_| too_long(limit))
    }
}

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take(bytes.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
