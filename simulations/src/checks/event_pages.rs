//! Whoever reads the event log of a tenant reads the same events, at whatever node: none is missing, none
//! comes twice, none is another than somebody else was shown, and none that was shown is not there any more.

use outside::ensure;
use serde_json::Value;

use super::{Checked, Violation};
use crate::facts::Reply;

/// Takes in a page of at most `limit` events behind number `after`, which was asked for when events up to
/// `told` had been shown to somebody. `shown` are all that were shown to anybody by now. Gives where the
/// next page begins.
///
/// # Errors
/// When the page is not what others were shown.
pub fn page(
    (after, limit, told): (usize, usize, usize),
    shown: &mut Vec<Value>,
    reply: &Reply,
) -> Checked<usize> {
    let events = reply.body["events"].as_array();
    let events = events.ok_or_else(|| Violation(format!("no events: {reply}")))?;
    for (at, event) in (after..).zip(events) {
        ensure!(event["seq"] == at + 1, "event {} was to come: {event} in {reply}", at + 1);
        match shown.get(at) {
            Some(known) => ensure!(known == event, "shown before as {known}: {event}"),
            None => shown.push(event.clone()),
        }
    }
    let last = after + events.len();
    ensure!(reply.body["next_after"] == last, "the last event is {last}: {reply}");
    ensure!(events.len() == limit || last >= told, "event {told} was shown before: {reply}");
    Ok(last)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reply(seqs: &[usize], last: usize) -> Reply {
        let events: Vec<Value> = seqs.iter().map(|seq| json!({ "seq": seq })).collect();
        Reply::of(200, json!({ "events": events, "next_after": last }))
    }

    #[test]
    fn what_is_missing_doubled_or_other_is_noticed() {
        let mut shown = Vec::new();
        assert_eq!(page((0, 9, 0), &mut shown, &reply(&[1, 2, 3], 3)), Ok(3));
        assert_eq!(page((1, 9, 3), &mut shown, &reply(&[2, 3, 4], 4)), Ok(4));
        assert_eq!(page((1, 2, 4), &mut shown, &reply(&[2, 3], 3)), Ok(3), "the page is full");
        assert_eq!(shown.len(), 4);
        for (asked, seqs, last) in [
            ((0, 9, 0), &[1, 3][..], 3),
            ((0, 9, 0), &[1, 1], 2),
            ((2, 9, 0), &[4], 4),
            ((1, 9, 4), &[2, 3], 3),
            ((1, 9, 3), &[2, 3], 2),
        ] {
            assert!(page(asked, &mut shown.clone(), &reply(seqs, last)).is_err(), "{seqs:?}");
        }
        shown[1] = json!({ "seq": 2, "other": true });
        assert!(page((0, 9, 0), &mut shown, &reply(&[1, 2], 2)).is_err());
    }
}
