//! Pages of lists, bounded in items and in bytes.

use crate::domain::json::Json;

/// A part of a list, and where the next part begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Cursor of the next page; `None` at the end. Opaque, URL-safe.
    pub next_cursor: Option<String>,
}

/// Which part of a list is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// Most items.
    pub limit: usize,
    /// Where to go on; `None` from the beginning.
    pub cursor: Option<String>,
}

/// Bytes that a page ends at, whatever its limit, once it is written as JSON.
pub const PAGE_BYTES_MAX: usize = 8 << 20;
/// What a page has beside its items, bytes, with room to spare.
const PAGE_FRAME_BYTES: usize = 8 << 10;
/// What the fixed parts of an item take in JSON, bytes, with room to spare.
pub(crate) const ITEM_FRAME_BYTES: usize = 512;

/// What still fits into a page: it ends by its limit or by bytes, whichever comes first.
#[derive(Debug, Clone)]
pub struct PageBudget {
    items: usize,
    bytes: usize,
    is_empty: bool,
}

impl PageBudget {
    /// An empty page.
    pub const fn new(limit: usize) -> Self {
        Self { items: limit, bytes: PAGE_BYTES_MAX - PAGE_FRAME_BYTES, is_empty: true }
    }

    /// Bounds the bytes of the page further.
    #[must_use]
    pub fn within(self, bytes: usize) -> Self {
        Self { bytes: self.bytes.min(bytes), ..self }
    }

    /// Takes an item, unless it does not fit. An item that is larger than a page is a page of its
    /// own.
    pub fn take(&mut self, item: &impl JsonSize) -> bool {
        let bytes = item.json_bytes();
        if self.items == 0 || (bytes > self.bytes && !self.is_empty) {
            return false;
        }
        self.items -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
        self.is_empty = false;
        true
    }

    /// Takes items as far as they fit, and tells whether there are more.
    pub fn fill<T: JsonSize>(mut self, items: impl IntoIterator<Item = T>) -> (Vec<T>, bool) {
        let mut page = Vec::new();
        for item in items {
            if !self.take(&item) {
                return (page, true);
            }
            page.push(item);
        }
        (page, false)
    }
}

/// What stands in a list.
pub trait JsonSize {
    /// How many bytes it has at most in an answer, as JSON.
    fn json_bytes(&self) -> usize;
}

/// Bytes of a text as a JSON string.
pub(crate) fn quoted_bytes(text: &str) -> usize {
    let escape = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0C => 1,
        0..=0x1F => 5,
        _ => 0,
    };
    text.len() + 2 + text.bytes().map(escape).sum::<usize>()
}

pub(crate) fn json_bytes(json: Option<&Json>) -> usize {
    json.map_or(0, |json| json.as_str().len())
}

impl JsonSize for Json {
    fn json_bytes(&self) -> usize {
        self.as_str().len() + 1
    }
}

impl<T: JsonSize, K> JsonSize for (K, T) {
    /// The key is not shown.
    fn json_bytes(&self) -> usize {
        self.1.json_bytes()
    }
}

impl<T: JsonSize> JsonSize for &T {
    fn json_bytes(&self) -> usize {
        (**self).json_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_page_ends_by_its_limit_or_by_bytes() {
        let items = |count: usize, bytes: usize| {
            (0..count).map(move |_| Json::from_text("x".repeat(bytes)))
        };
        let filled = |limit, count, bytes| {
            let (page, more) = PageBudget::new(limit).fill(items(count, bytes));
            (page.len(), more)
        };
        assert_eq!(filled(3, 3, 1), (3, false));
        assert_eq!(filled(3, 4, 1), (3, true));
        assert_eq!(filled(10, 0, 1), (0, false));
        assert_eq!(filled(100, 40, 1 << 20), (7, true));
        assert_eq!(filled(100, 2, PAGE_BYTES_MAX * 2), (1, true));
        assert_eq!(filled(100, 1, PAGE_BYTES_MAX * 2), (1, false));
    }

    proptest! {
        #[test]
        fn a_text_is_as_long_as_it_is_written(text: String) {
            let written = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(quoted_bytes(&text), written.len());
        }
    }
}
