//! Reads the head of a request: path, query, preconditions. All readers refuse with a [`Problem`].

use std::borrow::Cow;
use std::error::Error;
use std::str::FromStr;

use axum::extract::{FromRequestParts, MatchedPath};
use http::header;
use http::request::Parts;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use shiioo_actors::domain::ids::{JobId, NodeId, RunId, TenantId, TokenId};
use shiioo_actors::domain::lock::LockKey;
use shiioo_actors::domain::page::PageRequest;
use utoipa::IntoParams;

use crate::input::fields::check_name;
use crate::output::problem::{Code, Problem};

/// Items of a list where the client names no limit.
const PAGE_ITEMS_DEFAULT: u64 = 1000;
/// Most items of a list.
const PAGE_ITEMS_MAX: u64 = 10_000;
/// A version that no resource ever has. A resource that does not exist has version 0.
const NO_VERSION: u64 = u64::MAX;
/// Longest cursor, bytes: ours are shorter.
const CURSOR_BYTES_MAX: usize = 2048;

/// A parameter in the path.
#[derive(Debug)]
pub(crate) struct InPath<T>(pub(crate) T);

/// A value that can stand in a path.
pub(crate) trait PathParam: Sized {
    /// The name of the parameter in path templates.
    const NAME: &'static str;

    /// Reads the value, percent-decoded once.
    fn parse(text: Result<Cow<'_, str>, std::str::Utf8Error>) -> Result<Self, Problem>;
}

impl<S: Sync, T: PathParam> FromRequestParts<S> for InPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        path_param(parts).map(Self)
    }
}

/// Reads one parameter of the path. A template and its path have the same number of segments.
pub(crate) fn path_param<T: PathParam>(parts: &Parts) -> Result<T, Problem> {
    let template = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
    template
        .split('/')
        .zip(parts.uri.path().split('/'))
        .find(|(name, _)| {
            name.strip_prefix('{').and_then(|name| name.strip_suffix('}')) == Some(T::NAME)
        })
        .map_or_else(
            || Err(Problem::not_found("nothing is at this path")),
            |(_, text)| T::parse(percent_decode_str(text).decode_utf8()),
        )
}

macro_rules! id_in_path {
    ($type:ty, $name:literal, $what:literal) => {
        impl PathParam for $type {
            const NAME: &'static str = $name;

            fn parse(text: Result<Cow<'_, str>, std::str::Utf8Error>) -> Result<Self, Problem> {
                text.ok()
                    .and_then(|text| Self::from_str(&text).ok())
                    .ok_or_else(|| Problem::not_found(concat!("no ", $what, " has this id")))
            }
        }
    };
}

id_in_path!(TenantId, "tenant_id", "tenant");
id_in_path!(RunId, "run_id", "run");
id_in_path!(JobId, "job_id", "job");
id_in_path!(NodeId, "node_id", "node");
id_in_path!(TokenId, "token_id", "join token");

impl PathParam for LockKey {
    const NAME: &'static str = "key";

    fn parse(text: Result<Cow<'_, str>, std::str::Utf8Error>) -> Result<Self, Problem> {
        let key = text.map_err(|_| Problem::parameter(Self::NAME, "must be UTF-8"))?;
        Self::try_from(key.into_owned()).map_err(|wrong| Problem::invalid_field(Self::NAME, wrong))
    }
}

/// The name of a workflow.
#[derive(Debug)]
pub(crate) struct WorkflowName(pub(crate) String);

impl PathParam for WorkflowName {
    const NAME: &'static str = "name";

    fn parse(text: Result<Cow<'_, str>, std::str::Utf8Error>) -> Result<Self, Problem> {
        let name = text.map_err(|_| Problem::parameter(Self::NAME, "must be UTF-8"))?;
        check_name(&name).map_err(|wrong| Problem::invalid_field(Self::NAME, wrong))?;
        Ok(Self(name.into_owned()))
    }
}

/// Parameters in the query. Parameters that `T` does not know are ignored.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        type Cause = serde_path_to_error::Error<serde::de::value::Error>;
        axum::extract::Query::try_from_uri(&parts.uri).map(|query| Self(query.0)).map_err(|error| {
            let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
            while let Some(error) = cause {
                if let Some(wrong) = error.downcast_ref::<Cause>() {
                    return wrong_parameter(&wrong.path().to_string(), &wrong.inner().to_string());
                }
                cause = error.source();
            }
            Problem::parameter("query", error.body_text())
        })
    }
}

/// Says what is wrong with a parameter, and what would be right. `wrong` is the parser's word for it.
fn wrong_parameter(name: &str, wrong: &str) -> Problem {
    let twice = wrong.strip_prefix("duplicate field `").and_then(|rest| rest.strip_suffix('`'));
    if let Some(name) = twice {
        return Problem::parameter(name, "is given more than once");
    }
    // The texts of `ParseIntError`.
    let is_no_number = ["invalid digit", "number too large", "cannot parse integer"];
    if is_no_number.iter().any(|it| wrong.starts_with(it)) {
        let right = format_args!("must be a whole number from 0 to {}", u64::MAX);
        return Problem::parameter(name, right);
    }
    Problem::parameter(name, wrong)
}

/// The part of a list that a client asks for, as it was sent.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// Most items, 1 to 10000; 1000 if not given.
    #[param(minimum = 1, maximum = 10_000)]
    limit: Option<u64>,
    /// `next_cursor` of the answer before.
    cursor: Option<String>,
}

/// The part of a list that a client asks for, checked.
#[derive(Debug)]
pub(crate) struct Paging(pub(crate) PageRequest);

impl<S: Sync> FromRequestParts<S> for Paging {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(PageQuery { limit, cursor }) = Query::from_request_parts(parts, state).await?;
        let limit = limit.unwrap_or(PAGE_ITEMS_DEFAULT);
        if !(1..=PAGE_ITEMS_MAX).contains(&limit) {
            let right = format_args!("must be from 1 to {PAGE_ITEMS_MAX}, is {limit}");
            return Err(Problem::parameter("limit", right));
        }
        if cursor.as_deref().is_some_and(|cursor| !could_be_ours(cursor)) {
            return Err(Problem::parameter("cursor", "is none that this API gave out"));
        }
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        // An empty cursor is what a form sends for none.
        Ok(Self(PageRequest { limit, cursor: cursor.filter(|cursor| !cursor.is_empty()) }))
    }
}

/// Tells whether a cursor has the form of those that are given out: short and URL-safe.
fn could_be_ours(cursor: &str) -> bool {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    cursor.len() <= CURSOR_BYTES_MAX && cursor.bytes().all(safe)
}

/// `If-Match`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum IfMatch {
    /// No header: any version will do, or none.
    Absent,
    /// `*`: any version will do, but there must be one.
    Any,
    /// Tags: the version must be one of these.
    OneOf(Vec<u64>),
}

impl<S: Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut versions = Vec::new();
        let mut given = false;
        for value in parts.headers.get_all(header::IF_MATCH) {
            given = true;
            for tag in value.to_str().unwrap_or_default().split(',').map(str::trim) {
                if tag == "*" {
                    return Ok(Self::Any);
                }
                versions.extend(version_of(tag));
            }
        }
        if given && versions.is_empty() {
            return Err(Problem::new(
                Code::PreconditionFailed,
                "If-Match matches no version: it takes the ETag of the resource, \"<version>\", or *",
            ));
        }
        Ok(if given { Self::OneOf(versions) } else { Self::Absent })
    }
}

/// Reads the version that a strong entity tag of ours stands for. Other tags match nothing.
fn version_of(tag: &str) -> Option<u64> {
    let text = tag.strip_prefix('"')?.strip_suffix('"')?;
    text.parse::<u64>().ok().filter(|version| version.to_string() == text)
}

impl IfMatch {
    /// Computes the version to demand of the write, if any. `current` is asked for `*` and for
    /// lists only; `None` from it is a resource that does not exist.
    ///
    /// When an earlier attempt at this write may have been applied (`maybe_applied`), the present
    /// version may be the one that it made. The state machine decides then: it knows the origins
    /// that it has applied, and looks at the version of none of them again.
    pub(crate) async fn demand<F>(
        &self,
        maybe_applied: bool,
        current: F,
    ) -> Result<Option<u64>, Problem>
    where
        F: Future<Output = Result<Option<u64>, Problem>>,
    {
        let versions = match self {
            Self::Absent => return Ok(None),
            Self::OneOf(versions) if versions.len() == 1 => return Ok(versions.first().copied()),
            Self::OneOf(versions) => Some(versions),
            Self::Any => None,
        };
        let current = match current.await {
            Err(_) if maybe_applied => None,
            current => current?,
        };
        match (current, versions) {
            (Some(current), None) => Ok(Some(current)),
            (Some(current), Some(versions)) if versions.contains(&current) => Ok(Some(current)),
            _ if maybe_applied => {
                Ok(versions.and_then(|all| all.first()).copied().or(Some(NO_VERSION)))
            }
            (current, _) => {
                let text = current.map_or_else(
                    || "the resource does not exist".to_owned(),
                    |current| format!("the resource is at version {current} now"),
                );
                Err(Problem::new(Code::PreconditionFailed, text)
                    .facts(|facts| facts.current = current))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn if_match(values: &[&str]) -> Result<IfMatch, Problem> {
        let mut request = http::Request::put("/");
        for value in values {
            request = request.header(header::IF_MATCH, *value);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        IfMatch::from_request_parts(&mut parts, &()).await
    }

    #[tokio::test]
    async fn if_match_takes_our_strong_tags_only() {
        assert_eq!(if_match(&[]).await.unwrap(), IfMatch::Absent);
        assert_eq!(if_match(&["*"]).await.unwrap(), IfMatch::Any);
        assert_eq!(if_match(&["\"7\""]).await.unwrap(), IfMatch::OneOf(vec![7]));
        assert_eq!(
            if_match(&["\"7\", W/\"8\"", "\"9\""]).await.unwrap(),
            IfMatch::OneOf(vec![7, 9])
        );
        for bad in ["W/\"7\"", "7", "\"07\"", "\"x\"", "\"-1\"", "", "\"7"] {
            let problem = if_match(&[bad]).await.unwrap_err();
            assert_eq!(problem.render("r").status(), 412, "{bad}");
        }
    }

    #[tokio::test]
    async fn lists_and_stars_become_the_present_version() {
        let at = |version: Option<u64>| std::future::ready(Ok(version));
        let list = IfMatch::OneOf(vec![7, 9]);
        assert_eq!(list.demand(false, at(Some(9))).await.unwrap(), Some(9));
        assert!(list.demand(false, at(Some(8))).await.is_err());
        assert_eq!(IfMatch::Any.demand(false, at(Some(8))).await.unwrap(), Some(8));
        assert!(IfMatch::Any.demand(false, at(None)).await.is_err());
        assert_eq!(IfMatch::OneOf(vec![7]).demand(false, at(None)).await.unwrap(), Some(7));
        assert_eq!(IfMatch::Absent.demand(false, at(None)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_write_that_may_be_done_already_is_not_refused_for_its_own_change() {
        let at = |version: Option<u64>| std::future::ready(Ok(version));
        let list = IfMatch::OneOf(vec![7, 9]);
        assert_eq!(list.demand(true, at(Some(9))).await.unwrap(), Some(9));
        assert_eq!(list.demand(true, at(Some(10))).await.unwrap(), Some(7));
        let gone = async { Err(Problem::not_found("deleted")) };
        assert_eq!(list.demand(true, gone).await.unwrap(), Some(7));
        assert_eq!(IfMatch::Any.demand(true, at(None)).await.unwrap(), Some(NO_VERSION));
        assert_eq!(IfMatch::Absent.demand(true, at(None)).await.unwrap(), None);
    }

    async fn paging(query: &str) -> Result<PageRequest, Problem> {
        let uri = format!("/x{query}");
        let mut parts = http::Request::get(uri).body(()).unwrap().into_parts().0;
        Paging::from_request_parts(&mut parts, &()).await.map(|paging| paging.0)
    }

    #[tokio::test]
    async fn pages_are_bounded() {
        assert_eq!(paging("").await.unwrap(), PageRequest { limit: 1000, cursor: None });
        let page = paging("?cursor=a%2Db&limit=10000&other=1").await.unwrap();
        assert_eq!(page, PageRequest { limit: 10_000, cursor: Some("a-b".into()) });
        assert!(paging("?cursor=%21").await.is_err());
        for bad in ["0", "10001", "-1", "x", "", "1.5", "99999999999999999999"] {
            let problem = paging(&format!("?limit={bad}")).await.unwrap_err();
            assert_eq!(problem.render("r").status(), 400, "{bad}");
        }
        assert!(paging("?limit=1&limit=2").await.is_err());
        assert!(paging(&format!("?cursor={}", "x".repeat(CURSOR_BYTES_MAX + 1))).await.is_err());
    }

    #[test]
    fn names_in_paths_are_bounded_and_utf8() {
        let decoded = |text: &'static str| percent_decode_str(text).decode_utf8();
        assert_eq!(LockKey::parse(decoded("a%2Fb")).unwrap().as_str(), "a/b");
        assert!(LockKey::parse(decoded("cluster%2Fleader")).is_ok());
        assert!(LockKey::parse(decoded("%FF")).is_err());
        assert!(LockKey::parse(Ok("x".repeat(513).into())).is_err());
        assert!(WorkflowName::parse(Ok("x".repeat(201).into())).is_err());
        assert!(WorkflowName::parse(decoded("a%00b")).is_err());
        assert_eq!(WorkflowName::parse(decoded("..%2F..%2Fetc")).unwrap().0, "../../etc");
    }
}
