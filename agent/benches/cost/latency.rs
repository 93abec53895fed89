//! How much later than it happened an event is where somebody can use it.

use serde::{Deserialize, Serialize};

use crate::stats::quantile;

/// Of one event, in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// When it happened.
    pub time: u64,
    /// How much later it arrived.
    pub delay: u64,
}

/// An event is isolated if none came in the 10 ms before it.
const ISOLATION_NS: u64 = 10_000_000;

/// In milliseconds.
pub struct Percentiles {
    pub p50: f64,
    pub p99: f64,
    pub worst: f64,
}

/// Of those before which none came for a while.
pub fn isolated(latencies: &[Latency]) -> Percentiles {
    let mut isolated = Vec::new();
    for pair in latencies.windows(2) {
        if pair[1].time.saturating_sub(pair[0].time) >= ISOLATION_NS {
            isolated.push(pair[1]);
        }
    }
    all(&isolated)
}

pub fn all(latencies: &[Latency]) -> Percentiles {
    let mut delays: Vec<f64> = latencies.iter().map(|l| l.delay as f64 / 1e6).collect();
    delays.sort_by(f64::total_cmp);
    let [p50, p99, worst] = [0.5, 0.99, 1.0].map(|q| quantile(&delays, q));
    Percentiles { p50, p99, worst }
}
