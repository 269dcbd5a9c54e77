//! Latencies, CPU time and memory, and how they are printed.

use std::time::{Duration, Instant};

use crate::harness::Process;

/// The latencies of one scenario.
#[derive(Default)]
pub(crate) struct Sample {
    micros: Vec<u32>,
    /// Calls that failed.
    pub(crate) errors: u64,
    /// One of them, as text.
    pub(crate) example: Option<String>,
    /// How long it took in all.
    pub(crate) elapsed: Duration,
}

impl Sample {
    /// One that will not allocate while it measures.
    pub(crate) fn with_capacity(operations: usize) -> Self {
        Self { micros: Vec::with_capacity(operations), ..Self::default() }
    }

    pub(crate) fn add(&mut self, latency: Duration) {
        self.micros.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }

    pub(crate) fn fail(&mut self, example: String) {
        self.errors += 1;
        self.example.get_or_insert(example);
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.micros.extend(other.micros);
        self.errors += other.errors;
        self.example = self.example.take().or(other.example);
        self.elapsed = self.elapsed.max(other.elapsed);
    }

    fn operations(&self) -> f64 {
        self.micros.len() as f64
    }
}

/// CPU time spent while something was measured.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    client: Duration,
    server: Option<Duration>,
}

impl Cost {
    /// Measures `work`.
    pub(crate) async fn of(
        servers: &[Process],
        work: impl Future<Output = Sample>,
    ) -> (Sample, Self) {
        // Of all nodes together; unknown for a server that was there before.
        let of_server = || {
            let each = servers.iter().map(Process::cpu).collect::<Option<Vec<_>>>()?;
            (!each.is_empty()).then(|| each.iter().sum::<Duration>())
        };
        let (client, before, started) = (own_cpu(), of_server(), Instant::now());
        let mut sample = work.await;
        sample.elapsed = started.elapsed();
        let spent = |before: Duration| of_server().map(|now| now.saturating_sub(before));
        let server = before.and_then(spent);
        (sample, Self { client: own_cpu().saturating_sub(client), server })
    }
}

/// CPU time of this process, user and system.
fn own_cpu() -> Duration {
    // SAFETY: a zeroed rusage is a valid one, and the call fills it in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let of = |time: libc::timeval| {
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        Duration::from_secs(seconds)
            + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
    };
    of(usage.ru_utime) + of(usage.ru_stime)
}

/// Prints one line a scenario, as soon as it is known.
pub(crate) struct Table;

impl Table {
    pub(crate) fn new() -> Self {
        println!(
            "{:<16} {:>9} {:>9} {:>9} {:>9} {:>7} {:>11} {:>11} {:>11}",
            "",
            "ops/s",
            "p50 ms",
            "p99 ms",
            "max ms",
            "errors",
            "server CPU",
            "µs/op",
            "client CPU"
        );
        Self
    }

    pub(crate) fn add(&mut self, name: &str, sample: &Sample, cost: Option<Cost>) {
        let mut micros = sample.micros.clone();
        micros.sort_unstable();
        let at = |part: f64| {
            let index = ((micros.len() as f64 * part) as usize).min(micros.len().saturating_sub(1));
            micros.get(index).map_or(0.0, |micros| f64::from(*micros) / 1000.0)
        };
        let rate = sample.operations() / sample.elapsed.as_secs_f64().max(f64::EPSILON);
        let server = cost.and_then(|cost| cost.server).map(|cpu| cpu.as_secs_f64());
        let each = server.map(|cpu| cpu * 1e6 / sample.operations().max(1.0));
        let client = cost.map(|cost| cost.client.as_secs_f64());
        println!(
            "{name:<16} {rate:>9.0} {:>9.2} {:>9.2} {:>9.2} {:>7} {:>11} {:>11} {:>11}",
            at(0.5),
            at(0.99),
            at(1.0),
            sample.errors,
            shown(server, 2),
            shown(each, 0),
            shown(client, 2),
        );
        if let Some(example) = &sample.example {
            println!("    for example: {example}");
        }
    }
}

fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}
