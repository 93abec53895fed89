//! What is aimed at, and whether it was met.

use crate::stats::Estimate;

/// Verdicts, in the order in which they are printed.
#[derive(Default)]
pub struct Targets(Vec<String>);

impl Targets {
    pub fn at_most(&mut self, what: &str, value: f64, limit: f64, unit: &str) {
        self.add(what, &format!("≤ {limit} {unit}"), value, value - limit);
    }

    pub fn at_least(&mut self, what: &str, value: f64, limit: f64, unit: &str) {
        self.add(what, &format!("≥ {limit} {unit}"), value, limit - value);
    }

    /// Met if the confidence interval does not lie above zero.
    pub fn nothing(&mut self, what: &str, value: Estimate, unit: &str) {
        self.add(
            what,
            &format!("0 {unit}, within the error"),
            value.median,
            value.low,
        );
    }

    fn add(&mut self, what: &str, aim: &str, value: f64, missed_by: f64) {
        let verdict = match missed_by <= 0.0 {
            true => format!("met ({value:.3})"),
            false => format!("MISSED by {missed_by:.3} ({value:.3})"),
        };
        self.0.push(format!("{what:<58} {aim:<24} {verdict}"));
    }

    pub fn print(&self) {
        println!("\ntargets");
        for line in &self.0 {
            println!("{line}");
        }
    }
}
