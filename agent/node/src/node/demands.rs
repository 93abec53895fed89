//! What hooks the tracer is asked for, and when they are let go. Pure.

use std::time::{Duration, Instant};

use tcptracer::bpf::Demand;

/// What hooks are needed, asked for, and attached.
#[derive(Debug)]
pub struct Demands {
    /// How long hooks that nobody needs stay attached, for clients that come back.
    keep: Duration,
    /// When connections, and when failures, were needed last.
    needed: [Option<Instant>; 2],
    asked: Demand,
    /// Of the last ask.
    number: u64,
    /// These are attached; more may be.
    attached: Demand,
}

impl Demands {
    /// The tracer has attached what is needed at the start.
    pub fn new(start: Demand, keep: Duration) -> Self {
        Self {
            keep,
            needed: [None; 2],
            asked: start,
            number: 0,
            attached: start,
        }
    }

    /// Whether the hooks for this are attached.
    pub fn has(&self, demand: Demand) -> bool {
        self.attached >= demand
    }

    /// So much is needed now. If the tracer is to be asked for something else than before, this is it.
    pub fn need(&mut self, need: Demand, now: Instant) -> Option<Demand> {
        for (last, demand) in self.needed.iter_mut().zip(ASKABLE) {
            if need >= demand {
                *last = Some(now);
            }
        }
        let kept = |(last, _): &(&Option<Instant>, Demand)| {
            last.is_some_and(|l| l == now || now < l + self.keep)
        };
        let kept = self.needed.iter().zip(ASKABLE).filter(kept);
        let demand = kept.map(|(_, demand)| demand).max().unwrap_or_default();
        (demand != self.asked).then_some(demand)
    }

    /// The tracer was asked, with this number. What nobody needs may be gone at once.
    pub fn asked(&mut self, demand: Demand, number: u64) {
        self.asked = demand;
        self.number = number;
        self.attached = self.attached.min(demand);
    }

    /// What the tracer was asked for last.
    pub fn last(&self) -> Demand {
        self.asked
    }

    /// The tracer has answered an ask. Whether that is the last one.
    pub fn answered(&mut self, number: u64, done: bool) -> bool {
        let is_last = number == self.number;
        if is_last && done {
            self.attached = self.asked;
        } else if is_last {
            self.asked = self.attached;
            // It is asked for again once it is needed again.
            for (last, demand) in self.needed.iter_mut().zip(ASKABLE) {
                *last = last.filter(|_| demand <= self.attached);
            }
        }
        is_last
    }

    /// When to see again what is still needed.
    pub fn due(&self) -> Option<Instant> {
        let last = self
            .needed
            .iter()
            .zip(ASKABLE)
            .filter(|(_, demand)| self.asked >= *demand);
        last.filter_map(|(last, _)| Some((*last)? + self.keep))
            .min()
    }
}

/// In the order in which they are noted.
const ASKABLE: [Demand; 2] = [Demand::Connections, Demand::Failures];

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(60);

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn hooks_stay_for_a_while_after_the_last_need_of_each() {
        use Demand::{Connections, Failures, Nothing};
        let start = Instant::now();
        let mut demands = Demands::new(Nothing, KEEP);
        assert_eq!(demands.due(), None);
        assert_eq!(demands.need(Nothing, start), None);
        assert_eq!(demands.need(Failures, start), Some(Failures));
        demands.asked(Failures, 1);
        assert!(!demands.has(Connections));
        assert!(demands.answered(1, true));
        assert!(demands.has(Failures));
        assert_eq!(demands.need(Connections, after(start, 10)), None);
        assert_eq!(demands.due(), Some(after(start, 60)));
        assert_eq!(demands.need(Nothing, after(start, 59)), None);
        assert_eq!(demands.need(Nothing, after(start, 60)), Some(Connections));
        demands.asked(Connections, 2);
        assert!(demands.has(Connections) && !demands.has(Failures));
        assert_eq!(demands.due(), Some(after(start, 70)));
        assert_eq!(demands.need(Nothing, after(start, 70)), Some(Nothing));
        demands.asked(Nothing, 3);
        assert!(!demands.has(Connections));
        assert_eq!(demands.due(), None);
    }

    #[test]
    fn only_the_answer_to_the_last_ask_counts() {
        use Demand::{Connections, Nothing};
        let start = Instant::now();
        let mut demands = Demands::new(Nothing, Duration::ZERO);
        assert_eq!(demands.need(Connections, start), Some(Connections));
        demands.asked(Connections, 1);
        assert_eq!(demands.need(Nothing, after(start, 1)), Some(Nothing));
        demands.asked(Nothing, 2);
        assert!(!demands.answered(1, true));
        assert!(!demands.has(Connections));
        assert!(demands.answered(2, true));
    }

    #[test]
    fn what_has_failed_is_asked_for_again_once_it_is_needed() {
        use Demand::{Connections, Nothing};
        let start = Instant::now();
        let mut demands = Demands::new(Nothing, KEEP);
        assert_eq!(demands.need(Connections, start), Some(Connections));
        demands.asked(Connections, 1);
        assert!(demands.answered(1, false));
        assert!(!demands.has(Connections));
        assert_eq!(demands.need(Nothing, start), None);
        assert_eq!(demands.need(Connections, start), Some(Connections));
    }
}
