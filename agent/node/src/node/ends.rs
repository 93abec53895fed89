//! Subscriptions that are to end once what was reported before has been handed out. Pure.

use std::collections::HashMap;
use std::time::Instant;

/// By the number of the subscriber.
#[derive(Debug, Default)]
pub struct Ends {
    waiting: HashMap<u64, Stage>,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Until the tracer has answered this ask for a flush.
    Reported(u64),
    /// Until no event is held back any more that has to go out by then.
    Named(Instant),
    /// All is handed out.
    Done,
}

impl Ends {
    /// A subscription is to end; `flush` asks the tracer for what was reported by now. To ask again changes nothing.
    pub fn begin(&mut self, subscriber: u64, flush: impl FnOnce() -> u64) {
        self.waiting
            .entry(subscriber)
            .or_insert_with(|| Stage::Reported(flush()));
    }

    /// The tracer has answered this ask and those before. `held`: by when the last event goes out that is held back now.
    pub fn flushed(&mut self, answered: u64, held: Option<Instant>) {
        for stage in self.waiting.values_mut() {
            if matches!(*stage, Stage::Reported(ask) if ask <= answered) {
                *stage = held.map_or(Stage::Done, Stage::Named);
            }
        }
    }

    /// Takes out those that can end. `held`: by when the first event goes out that is held back now.
    pub fn take_due(&mut self, held: Option<Instant>) -> Vec<u64> {
        let due = |stage: &Stage| match stage {
            Stage::Reported(_) => false,
            Stage::Named(last) => held.is_none_or(|first| first > *last),
            Stage::Done => true,
        };
        let taken = self.waiting.extract_if(|_, stage| due(stage));
        taken.map(|(subscriber, _)| subscriber).collect()
    }

    /// Forgets those who have gone.
    pub fn retain(&mut self, is_there: impl Fn(u64) -> bool) {
        self.waiting.retain(|subscriber, _| is_there(*subscriber));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_ends_when_what_was_reported_before_is_handed_out() {
        let mut ends = Ends::default();
        let now = Instant::now();
        let later = now + Duration::from_millis(1);
        ends.begin(7, || 2);
        ends.flushed(1, None);
        assert!(ends.take_due(None).is_empty());
        ends.flushed(2, Some(now));
        // What is held back since then is not waited for.
        ends.flushed(3, Some(later));
        assert!(ends.take_due(Some(now)).is_empty());
        assert_eq!(ends.take_due(Some(later)), [7]);
        assert!(ends.take_due(None).is_empty());
    }

    #[test]
    fn with_nothing_held_back_one_ends_at_once() {
        let mut ends = Ends::default();
        let now = Instant::now();
        ends.begin(7, || 1);
        ends.begin(7, || panic!("it was asked for"));
        ends.begin(8, || 2);
        // A larger number answers the smaller ones as well.
        ends.flushed(2, None);
        let mut due = ends.take_due(Some(now));
        due.sort_unstable();
        assert_eq!(due, [7, 8]);
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let mut ends = Ends::default();
        ends.begin(7, || 1);
        ends.begin(8, || 1);
        ends.retain(|subscriber| subscriber == 8);
        ends.flushed(1, None);
        assert_eq!(ends.take_due(None), [8]);
    }
}
