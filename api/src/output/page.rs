//! Pages of lists, and their cursors: opaque, URL-safe, and none but those that were given out.
//!
//! A cursor is the key of the last item of its page, behind a digest of that key and of the list
//! that gave it out. The digest is no secret: it tells a cursor from a typing error, from a cursor
//! of another list, and from one of an earlier version, which would silently begin elsewhere.

use std::fmt::{Display, Write as _};

use sha2::{Digest, Sha256};
use shiioo_actors::domain::page::{Page, PageRequest};

use crate::output::problem::Problem;

/// Bytes of the digest.
const DIGEST_BYTES: usize = 6;

/// A list that is given out in pages.
#[derive(Debug)]
pub(crate) struct List(Sha256);

impl List {
    /// Names a list within its scope, a tenant or the cluster.
    pub(crate) fn new(name: &str, scope: impl Display) -> Self {
        Self(Sha256::new().chain_update(format!("{name}\n{scope}\n")))
    }

    /// Replaces the cursor of a request by the key that it stands for.
    pub(crate) fn open(&self, page: PageRequest) -> Result<PageRequest, Problem> {
        let Some(cursor) = page.cursor else { return Ok(page) };
        let key = bytes_of(&cursor).and_then(|bytes| {
            let (digest, key) = bytes.split_at_checked(DIGEST_BYTES)?;
            (self.digest(key) == digest).then(|| String::from_utf8(key.to_vec()).ok())?
        });
        match key {
            Some(key) => Ok(PageRequest { cursor: Some(key), ..page }),
            None => Err(Problem::parameter(
                "cursor",
                "is none that this list gave out: begin again without one",
            )),
        }
    }

    /// Turns a page of values into a page of bodies and the cursor of the next page.
    pub(crate) fn close<V, B: From<V>>(&self, page: Page<V>) -> (Vec<B>, Option<String>) {
        (page.items.into_iter().map(B::from).collect(), self.cursor(page.next_cursor))
    }

    /// Makes the cursor for the key of a page's last item, if there is a next page.
    fn cursor(&self, key: Option<String>) -> Option<String> {
        let key = key?;
        let mut cursor = String::with_capacity(2 * (DIGEST_BYTES + key.len()));
        for byte in self.digest(key.as_bytes()).iter().chain(key.as_bytes()) {
            // Writing to a String cannot fail.
            let _ = write!(cursor, "{byte:02x}");
        }
        Some(cursor)
    }

    fn digest(&self, key: &[u8]) -> [u8; DIGEST_BYTES] {
        let mut digest = [0; DIGEST_BYTES];
        digest.copy_from_slice(&self.0.clone().chain_update(key).finalize()[..DIGEST_BYTES]);
        digest
    }
}

/// Reads bytes that are written in hexadecimal digits.
fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).filter(|_| !byte.is_ascii_uppercase());
    let pair = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(*high)? * 16 + digit(*low)?).ok(),
        _ => None,
    };
    text.as_bytes().chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn opened(list: &List, cursor: &str) -> Option<String> {
        let page = PageRequest { limit: 1, cursor: Some(cursor.to_owned()) };
        list.open(page).ok().and_then(|page| page.cursor)
    }

    #[test]
    fn only_what_this_list_gave_out_is_taken() {
        let runs = List::new("runs", "tenant 1");
        let given = runs.cursor(Some("17".into())).unwrap();
        assert_eq!(opened(&runs, &given).as_deref(), Some("17"));
        for other in [List::new("runs", "tenant 2"), List::new("jobs", "tenant 1")] {
            assert_eq!(opened(&other, &given), None);
        }
        let upper = given.to_uppercase();
        for bad in ["17", "-1", "18446744073709551615", "00", "x", &given[1..], &given[2..], &upper]
        {
            assert_eq!(opened(&runs, bad), None, "{bad}");
        }
        assert_eq!(runs.cursor(None), None);
        let first = PageRequest { limit: 7, cursor: None };
        assert_eq!(runs.open(first.clone()).unwrap(), first);
    }

    proptest! {
        #[test]
        fn any_key_comes_back(key: String, garbage: String) {
            let list = List::new("locks", "cluster");
            let cursor = list.cursor(Some(key.clone())).unwrap();
            prop_assert!(cursor.bytes().all(|byte| byte.is_ascii_alphanumeric()));
            prop_assert_eq!(opened(&list, &cursor), Some(key));
            prop_assert_eq!(opened(&list, &garbage), None);
        }
    }
}
