//! The `Date` header, from the clock of the seams.

use chrono::{DateTime, Datelike, Timelike};
use http::HeaderValue;
use shiioo_actors::domain::time::Timestamp;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A moment as HTTP writes it; nothing for moments that no clock shows.
pub(crate) fn http_date(at: Timestamp) -> Option<HeaderValue> {
    let at = DateTime::from_timestamp_millis(at.0)?;
    let text = format!(
        "{}, {:02} {} {:04} {:02}:{:02}:{:02} GMT",
        at.weekday(),
        at.day(),
        MONTHS.get(usize::try_from(at.month0()).ok()?)?,
        at.year(),
        at.hour(),
        at.minute(),
        at.second()
    );
    HeaderValue::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_http_writes_them() {
        let at = Timestamp::parse_rfc3339("1994-11-06T08:49:37.9Z").unwrap();
        assert_eq!(http_date(at).unwrap(), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(http_date(Timestamp(0)).unwrap(), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert!(http_date(Timestamp(i64::MAX)).is_none());
    }
}
