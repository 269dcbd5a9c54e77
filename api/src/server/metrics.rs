//! What the API counts, for `GET /metrics`.
//!
//! A registry per router, none global: several nodes live in one process in simulation. Labels
//! are path templates, never paths, so that their number is bounded.

use std::fmt::Write as _;
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upper bounds of the latency buckets, seconds.
const LATENCY_BUCKETS_SECS: [f64; 12] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0];
/// The label of requests that no route answers.
pub(crate) const UNMATCHED: &str = "unmatched";

/// Writes further metrics in the Prometheus text format, each with its own `# TYPE` line.
pub type ExtraMetrics = Box<dyn Fn(&mut String) + Send + Sync>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: &'static str,
    method: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Timed {
    route: &'static str,
}

/// The metrics of one router and its server.
pub(crate) struct Metrics {
    registry: Registry,
    extra: Vec<ExtraMetrics>,
    answered: Family<Answered, Counter>,
    latency: Family<Timed, Histogram, fn() -> Histogram>,
    in_flight: Gauge,
    connections: Gauge,
}

/// Raises a gauge by 1 as long as it lives.
#[derive(Debug)]
pub(crate) struct Held(Gauge);

impl Held {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Makes metrics that are all 0. `extra` is written behind them.
    pub(crate) fn new(extra: Vec<ExtraMetrics>) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("shiioo_http"),
            extra,
            answered: Family::default(),
            latency: Family::new_with_constructor(|| Histogram::new(LATENCY_BUCKETS_SECS)),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("requests", "Requests answered", metrics.answered.clone());
        registry.register(
            "request_duration_seconds",
            "Time from the end of the headers to the answer",
            metrics.latency.clone(),
        );
        registry.register(
            "requests_in_flight",
            "Requests not yet answered",
            metrics.in_flight.clone(),
        );
        registry.register("connections", "Open connections", metrics.connections.clone());
        metrics
    }

    /// Counts a request as in flight until the guard is dropped.
    pub(crate) fn begin(&self) -> Held {
        Held::new(&self.in_flight)
    }

    /// Counts a connection as open until the guard is dropped.
    pub(crate) fn connected(&self) -> Held {
        Held::new(&self.connections)
    }

    /// Counts an answered request.
    pub(crate) fn answered(
        &self,
        route: &'static str,
        method: &Method,
        status: StatusCode,
        latency: Duration,
    ) {
        let labels = Answered { route, method: method_label(method), status: class(status) };
        self.answered.get_or_create(&labels).inc();
        self.latency.get_or_create(&Timed { route }).observe(latency.as_secs_f64());
    }

    /// Writes everything in the Prometheus text format.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        // Neither can fail: a String takes everything.
        let _ = text::encode_registry(&mut out, &self.registry);
        for extra in &self.extra {
            extra(&mut out);
        }
        let _ = writeln!(out, "# EOF");
        out
    }
}

/// Methods are a client's to invent; labels are not.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        ..200 => "1xx",
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        500.. => "5xx",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_route_method_and_class() {
        let extra: ExtraMetrics =
            Box::new(|out| out.push_str("# TYPE shiioo_up gauge\nshiioo_up 1\n"));
        let metrics = Metrics::new(vec![extra]);
        let route = "/api/tenants/{tenant_id}";
        let _held = metrics.begin();
        metrics.answered(route, &Method::GET, StatusCode::OK, Duration::from_millis(2));
        metrics.answered(UNMATCHED, &Method::GET, StatusCode::NOT_FOUND, Duration::ZERO);
        let text = metrics.text();
        for line in [
            r#"shiioo_http_requests_total{route="/api/tenants/{tenant_id}",method="GET",status="2xx"} 1"#,
            r#"shiioo_http_requests_total{route="unmatched",method="GET",status="4xx"} 1"#,
            r#"shiioo_http_request_duration_seconds_count{route="/api/tenants/{tenant_id}"} 1"#,
            "shiioo_http_requests_in_flight 1",
            "shiioo_up 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
