//! A tenant whose folder is lost or an older copy is out of service on that node, with the reason, and
//! alone: nothing of it is served there, nothing of it is 'not found', and its neighbours are served.
//!
//! Where other nodes have replicas, one of them may lead and answer what this node is asked. That the
//! damaged replica serves nothing then shows at the end, when all replicas are compared.

use outside::ensure;

use super::Checked;
use crate::facts::Reply;

/// What a node says of a tenant that it does not serve.
const OUT_OF_SERVICE: &str = "quarantined";

/// Why a tenant has to be out of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its folder is gone.
    Missing,
    /// Its folder is an older copy than the log knows of.
    Older,
}

impl Reason {
    /// What the node says.
    const fn words(self) -> &'static str {
        match self {
            Self::Missing => "the files are missing",
            Self::Older => "the files are older",
        }
    }
}

/// Takes in an answer about the runs of a tenant that has to be out of service, by its node. Tells
/// whether the node says that it is. A tenant that a client has asked to delete may be `gone`; one that
/// has `others` for replicas may be served by them.
///
/// # Errors
/// When it is served, not found, or out of service for another reason.
pub fn said(reply: &Reply, reason: Reason, gone: bool, others: bool) -> Checked<bool> {
    let why = reason.words();
    ensure!(others || !reply.is_success(), "a tenant is served, and {why}: {reply}");
    ensure!(gone || reply.status != 404, "a tenant is not found where {why}: {reply}");
    let says_why = is_out_of_service(reply) && detail(reply).contains(why);
    // Another replica may be out of service for a reason of its own.
    let has_reason = says_why || others || !is_out_of_service(reply);
    ensure!(has_reason, "not the reason, which is that {why}: {reply}");
    Ok(says_why)
}

/// Takes in an answer about the runs of another tenant of that node, whose disk has refused nothing.
/// Tells whether that tenant is served.
///
/// # Errors
/// When it is out of service.
pub fn spared(reply: &Reply) -> Checked<bool> {
    ensure!(!is_out_of_service(reply), "a tenant is out of service that lacks nothing: {reply}");
    Ok(reply.is_success())
}

fn is_out_of_service(reply: &Reply) -> bool {
    reply.status == 503 && detail(reply).contains(OUT_OF_SERVICE)
}

fn detail(reply: &Reply) -> &str {
    reply.body["detail"].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reply(status: u16, detail: &str) -> Reply {
        Reply::of(status, json!({ "detail": detail }))
    }

    #[test]
    fn a_tenant_that_is_served_not_found_or_silent_about_the_reason_is_noticed() {
        let said =
            |status, detail, gone| said(&reply(status, detail), Reason::Missing, gone, false);
        assert_eq!(said(503, "quarantined: the files are missing", false), Ok(true));
        assert_eq!(said(503, "no leader", false), Ok(false));
        assert_eq!(said(404, "", true), Ok(false));
        for (status, detail) in [(200, ""), (404, ""), (503, "quarantined: the files are older")] {
            assert!(said(status, detail, false).is_err(), "{status} {detail}");
        }
        assert!(said(200, "", true).is_err());
        assert_eq!(super::said(&reply(200, ""), Reason::Missing, false, true), Ok(false));
    }

    #[test]
    fn a_neighbour_that_is_out_of_service_as_well_is_noticed() {
        assert_eq!(spared(&reply(200, "")), Ok(true));
        assert_eq!(spared(&reply(404, "no such tenant")), Ok(false));
        assert!(spared(&reply(503, "quarantined: the files are missing")).is_err());
    }
}
