//! Stands in for the crate `base2histogram`, which openraft counts batch sizes with.
//!
//! openraft shows those counts under its feature `runtime-stats` only, which is off here. The
//! crate itself builds 27 MB of tables at the first use, two thirds of what an idle node would
//! occupy. This one has the same face, as far as openraft sees it, and keeps the number of samples
//! alone. See `docs/decisions/0005-no-histogram-tables.md`.

use std::fmt;
use std::marker::PhantomData;

/// Counts samples.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    samples: u64,
    data: PhantomData<T>,
}

impl<T> Histogram<T> {
    /// Without samples.
    pub const fn new() -> Self {
        Self { samples: 0, data: PhantomData }
    }

    /// Counts a sample; its value is not kept.
    pub const fn record(&mut self, _value: u64) {
        self.samples = self.samples.saturating_add(1);
    }

    /// Counts `count` samples; their value is not kept.
    pub const fn record_n(&mut self, _value: u64, count: u64) {
        self.samples = self.samples.saturating_add(count);
    }

    /// The number of samples; every percentile is 0.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats { samples: self.samples, ..PercentileStats::default() }
    }
}

/// Percentiles of a histogram: all 0 here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PercentileStats {
    /// Samples counted.
    pub samples: u64,
    /// 0.1th percentile.
    pub p0_1: u64,
    /// 1st percentile.
    pub p1: u64,
    /// 5th percentile.
    pub p5: u64,
    /// 10th percentile.
    pub p10: u64,
    /// 50th percentile.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} samples", self.samples)
    }
}

/// A chart of histograms: their numbers of samples here.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart(Vec<(&'static str, u64)>);

impl AsciiChart {
    /// Without histograms.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// With one more.
    #[must_use]
    pub fn add(mut self, name: &'static str, histogram: Histogram) -> Self {
        self.0.push((name, histogram.samples));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, samples)| writeln!(f, "{name}: {samples} samples"))
    }
}
