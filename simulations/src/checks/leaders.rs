//! One leader a term, and no leader who has lost touch with the others.

use std::collections::BTreeMap;
use std::time::Duration;

use outside::ensure;

use super::Checked;
use crate::facts::Reply;
use crate::plan::ELECTION_TIMEOUT;

/// How long a node that lost touch with a majority may still name a leader.
pub const FORGET_MAX: Duration = ELECTION_TIMEOUT.saturating_mul(2);

/// Who led when, as far as anybody was told.
#[derive(Debug, Default)]
pub struct Leaders(BTreeMap<u64, String>);

impl Leaders {
    /// Takes in an answer to `GET /api/cluster/leader`. Gives back the leader's id where one is
    /// named.
    ///
    /// # Errors
    /// When another node was named for the same term.
    pub fn learn(&mut self, reply: &Reply) -> Checked<Option<String>> {
        let Some(id) = reply.body["leader"]["id"].as_str() else { return Ok(None) };
        let term = reply.body["term"].as_u64().unwrap_or_default();
        ensure!(term > 0, "a leader of no term: {reply}");
        let known = self.0.entry(term).or_insert_with(|| id.to_owned());
        ensure!(known == id, "{known} led term {term} as well: {reply}");
        Ok(Some(id.to_owned()))
    }
}

/// A node that has been cut off since a moment, and was so until its answer came, names no leader
/// when it was asked long after.
///
/// # Errors
/// When it does.
pub fn forgotten(cut_off_since: Duration, reply: &Reply) -> Checked {
    let late = reply.sent_at > cut_off_since + FORGET_MAX;
    ensure!(
        !late || reply.body["leader"].is_null(),
        "a node that is alone since {cut_off_since:?} and was asked at {:?} names a leader: {reply}",
        reply.sent_at
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reply(id: Option<&str>, term: u64) -> Reply {
        let body = json!({ "leader": id.map(|id| json!({ "id": id })), "term": term });
        Reply { sent_at: Duration::from_secs(9), ..Reply::of(200, body) }
    }

    #[test]
    fn two_leaders_of_a_term_are_noticed() {
        let mut leaders = Leaders::default();
        for (id, term) in [(Some("a"), 1), (None, 1), (Some("b"), 2), (Some("a"), 1)] {
            assert!(leaders.learn(&reply(id, term)).is_ok(), "{id:?} {term}");
        }
        assert!(leaders.learn(&reply(Some("a"), 2)).is_err());
    }

    #[test]
    fn a_leader_that_nobody_can_hear_is_noticed() {
        let (long_ago, now) = (Duration::from_secs(5), Duration::from_millis(8500));
        assert!(forgotten(long_ago, &reply(Some("a"), 1)).is_err());
        assert_eq!(forgotten(long_ago, &reply(None, 1)), Ok(()));
        assert_eq!(forgotten(now, &reply(Some("a"), 1)), Ok(()));
    }
}
