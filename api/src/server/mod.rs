//! What stands around every request: connections, credentials, bounds, logs and metrics.
//!
//! # The walk of a request
//!
//! ```text
//! listener     accepts a connection, speaks HTTP/1, bounds each phase in time
//!   middleware  request id, size of the headers, and by the route that matched:
//!     auth         the credential that the route declares
//!     same_origin  or, where the node asks for none, whose page sends the request
//!     connections  a place for the connection, among those of the tenant that the request names
//!     pacing       a pause, if that tenant is refused again and again
//!     connections  or if it has far more requests worked on than others, and tasks get their turn late
//!     (forward, request, the handler)
//!   rest        what is left of a body that nobody read
//!   pieces      large answers, a piece at a time
//!   middleware  writes a problem out, the log, metrics
//! ```
//!
//! A request that another node hands over comes in at `middleware::inbound` instead: that node has
//! done the rest.
//!
//! # Invariants
//!
//! - The accept loop ends only when it is told to. Failures of the listener, and connections above
//!   the bound, end nothing.
//! - Everything is bounded: connections, shared fairly between tenants (`places`); the time of each
//!   phase of a connection; the headers; the bytes of bodies in memory and the requests that wait on
//!   purpose, both shared fairly as well (`pool`).
//! - No layer decides by a path. What a route needs stands in its declaration (`declaration`), and
//!   a request that no route answers needs the admin token.
//! - A handler that panics costs its own request alone.
//! - A kept-alive connection never closes without having said so: a body that is not read is thrown
//!   away, or the answer says `Connection: close` (`rest`).
//! - Labels of metrics are path templates, never paths: their number is bounded.

pub(crate) mod app;
pub(crate) mod auth;
pub(crate) mod connections;
mod date;
pub(crate) mod declaration;
pub(crate) mod listener;
pub(crate) mod metrics;
pub(crate) mod middleware;
pub(crate) mod pacing;
mod pieces;
mod places;
pub(crate) mod pool;
mod rest;
pub(crate) mod same_origin;
mod unread;
