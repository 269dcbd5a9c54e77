//! Whoever asks after somebody was answered is told nothing older, at whatever node.
//!
//! The history of a register says more, but is short; versions can be compared all the time.

use outside::ensure;

use super::{Checked, Violation};
use crate::facts::Reply;

/// Takes in an answer to a question that was asked when version `told` had been shown to somebody.
/// Gives back the newest version that was shown by now.
///
/// # Errors
/// When the answer is older than `told`.
pub fn not_older(told: u64, reply: &Reply) -> Checked<u64> {
    if reply.status != 200 {
        return Ok(told);
    }
    let version = reply.version.ok_or_else(|| Violation(format!("no version: {reply}")))?;
    ensure!(
        version >= told,
        "version {version} was shown to who asked at {:?}, when {told} was known: {reply}",
        reply.sent_at
    );
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_answer_is_noticed() {
        let reply = Reply { version: Some(3), ..Reply::of(200, serde_json::Value::Null) };
        assert_eq!(not_older(2, &reply), Ok(3));
        assert_eq!(not_older(3, &reply), Ok(3));
        assert!(not_older(4, &reply).is_err());
        assert!(not_older(1, &Reply { version: None, ..reply.clone() }).is_err());
        // A refusal shows none.
        assert_eq!(not_older(4, &Reply { status: 503, ..reply }), Ok(4));
    }
}
