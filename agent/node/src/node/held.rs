//! Events that wait to be named. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tcptracer_event::Event;

use crate::identity::{Attributed, Attribution, Index};

/// How long an event waits for a name. A pod's name is known before its container, or soon after.
const PATIENCE: Duration = Duration::from_millis(50);

/// How long an event waits if the agent does not know its cgroup: scans, which find the cgroup, are a second apart at most.
const SCAN_PATIENCE: Duration = Duration::from_secs(2);

/// Events that wait at most; with more, the oldest go unnamed.
const CAPACITY: usize = 16_384;

/// Events in the order in which they came, and when that was. None goes out while an earlier one of the same owner is in here: all
/// of them wait for the same, and what lets one go lets go of those before it first.
#[derive(Debug, Default)]
pub struct Held {
    events: VecDeque<(Instant, Event)>,
    /// When the first has waited long enough.
    due: Option<Instant>,
}

impl Held {
    /// Takes events in, and returns what goes out now. `scan` looks for cgroups that nobody told of, unless it did
    /// just now, and says whether it looked.
    pub fn admit(
        &mut self,
        events: Vec<Event>,
        index: &mut Index,
        now: Instant,
        mut scan: impl FnMut(&mut Index) -> bool,
    ) -> Vec<Attributed> {
        let mut out = self.release(index, now);
        out.reserve(events.len());
        for event in events {
            let cgroup = event.owner.cgroup_id;
            if index.should_scan(cgroup) && scan(index) {
                if index.should_scan(cgroup) {
                    index.note_outside(cgroup);
                }
                out.extend(self.release(index, now));
            }
            let attributed = index.attributed(event);
            match patience(index, &attributed) {
                Some(patience) => {
                    let evicted = self.keep(event, now, patience);
                    out.extend(evicted.map(|event| index.attributed(event)));
                }
                None => out.push(attributed),
            }
        }
        out
    }

    /// Takes out those that have waited long enough, or of which no more is to be known.
    pub fn release(&mut self, index: &Index, now: Instant) -> Vec<Attributed> {
        let mut released = Vec::new();
        let mut due: Option<Instant> = None;
        self.events.retain(|(since, event)| {
            let attributed = index.attributed(*event);
            let until = patience(index, &attributed).map(|patience| *since + patience);
            let until = until.filter(|until| *until > now);
            match until {
                Some(until) => due = Some(due.map_or(until, |due| due.min(until))),
                None => released.push(attributed),
            }
            until.is_some()
        });
        self.due = due;
        released
    }

    /// Takes out all.
    pub fn release_all(&mut self, index: &Index) -> Vec<Attributed> {
        self.due = None;
        let events = self.events.drain(..);
        events.map(|(_, event)| index.attributed(event)).collect()
    }

    /// When the first has waited long enough.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// By then all that are in here now have gone out.
    pub fn last_due(&self) -> Option<Instant> {
        let last = self.events.back();
        last.map(|(since, _)| *since + SCAN_PATIENCE)
    }

    /// Keeps an event; returns one that has to go instead if there is no room.
    fn keep(&mut self, event: Event, now: Instant, patience: Duration) -> Option<Event> {
        let until = now + patience;
        self.events.push_back((now, event));
        self.due = Some(self.due.map_or(until, |due| due.min(until)));
        if self.events.len() <= CAPACITY {
            return None;
        }
        self.events.pop_front().map(|(_, event)| event)
    }
}

/// How long the event may wait, if more may be known of its owner soon.
fn patience(index: &Index, Attributed { event, who, .. }: &Attributed) -> Option<Duration> {
    match who {
        Attribution::Pending(..) => Some(PATIENCE),
        Attribution::Unknown if index.should_scan(event.owner.cgroup_id) => Some(SCAN_PATIENCE),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::fixture::{self, cgroup_path};
    use tcptracer_event::Kind;

    /// The cgroup of the pod 1.
    const CART: u64 = 7;

    fn opened_and_closed() -> [Event; 2] {
        [Kind::Connect, Kind::Close].map(|kind| fixture::event(kind, 1, CART))
    }

    fn index() -> Index {
        let mut index = Index::new(true);
        index.pod_applied(Arc::new(fixture::pod(1)));
        index
    }

    /// The events alone.
    fn events(out: Vec<Attributed>) -> Vec<Event> {
        out.into_iter().map(|attributed| attributed.event).collect()
    }

    fn never(_: &mut Index) -> bool {
        false
    }

    #[test]
    fn what_a_scan_names_goes_out_in_order() {
        let (mut held, mut index, now) = (Held::default(), index(), Instant::now());
        let [connect, close] = opened_and_closed();
        // It is too soon for another scan.
        assert_eq!(
            events(held.admit(vec![connect], &mut index, now, never)),
            []
        );

        let out = held.admit(vec![close], &mut index, now, |index| {
            index.cgroup_made(CART, &cgroup_path(1), now);
            true
        });
        assert_eq!(events(out), [connect, close]);
        assert_eq!(held.due(), None);
    }

    #[test]
    fn what_no_scan_finds_goes_out_in_order() {
        let (mut held, mut index, now) = (Held::default(), index(), Instant::now());
        let [connect, close] = opened_and_closed();
        assert_eq!(
            events(held.admit(vec![connect], &mut index, now, never)),
            []
        );
        assert_eq!(
            events(held.admit(vec![close], &mut index, now, |_| true)),
            [connect, close]
        );
    }

    #[test]
    fn what_was_named_meanwhile_goes_out_first() {
        let (mut held, mut index, now) = (Held::default(), Index::new(true), Instant::now());
        let [connect, close] = opened_and_closed();
        index.cgroup_made(CART, &cgroup_path(1), now);
        assert_eq!(
            events(held.admit(vec![connect], &mut index, now, never)),
            []
        );
        index.pod_applied(Arc::new(fixture::pod(1)));
        assert_eq!(
            events(held.admit(vec![close], &mut index, now, never)),
            [connect, close]
        );
    }

    #[test]
    fn nothing_waits_longer_than_that() {
        let (mut held, mut index, now) = (Held::default(), Index::new(true), Instant::now());
        index.cgroup_made(CART, &cgroup_path(1), now);
        let [connect, close] = opened_and_closed();
        held.admit(vec![connect], &mut index, now, never);
        let later = now + PATIENCE / 2;
        held.admit(vec![close], &mut index, later, never);

        assert_eq!(held.due(), Some(now + PATIENCE));
        let almost = now + PATIENCE - Duration::from_nanos(1);
        assert_eq!(held.release(&index, almost), []);
        assert_eq!(events(held.release(&index, now + PATIENCE)), [connect]);
        assert_eq!(held.due(), Some(later + PATIENCE));
        assert_eq!(events(held.release_all(&index)), [close]);
        assert_eq!(held.due(), None);
    }

    /// It waits for a scan, which takes longer, and once that has found the cgroup no longer than others.
    #[test]
    fn what_nobody_told_of_waits_for_a_scan() {
        let (mut held, mut index, now) = (Held::default(), Index::new(true), Instant::now());
        let [connect, close] = opened_and_closed();
        held.admit(vec![connect, close], &mut index, now, never);
        assert_eq!(held.due(), Some(now + SCAN_PATIENCE));
        assert_eq!(held.release(&index, now + PATIENCE), []);
        index.cgroup_made(CART, &cgroup_path(1), now);
        assert_eq!(
            events(held.release(&index, now + PATIENCE)),
            [connect, close]
        );
        assert_eq!(held.due(), None);
    }

    #[test]
    fn without_room_the_oldest_go() {
        let (mut held, mut index, now) = (Held::default(), index(), Instant::now());
        let event = |cookie| fixture::event(Kind::Connect, cookie, CART);
        let all = (0..CAPACITY as u64 + 2).map(event).collect();
        assert_eq!(
            events(held.admit(all, &mut index, now, never)),
            [event(0), event(1)]
        );
        assert_eq!(held.release_all(&index).len(), CAPACITY);
    }

    #[test]
    fn what_is_in_no_container_does_not_wait() {
        let (mut held, mut index, now) = (Held::default(), index(), Instant::now());
        index.cgroup_made(2, "/system.slice", now);
        let host = fixture::event(Kind::Connect, 1, 2);
        let nobody = fixture::event(Kind::Close, 2, 0);
        let both = vec![host, nobody];
        assert_eq!(
            events(held.admit(both.clone(), &mut index, now, never)),
            both
        );
    }

    /// What happens to a node whose three pods have the cgroups 1 to 3.
    #[derive(Clone, Debug)]
    enum Step {
        Events(Vec<u64>, bool),
        Pod(u32),
        Cgroup(u32),
        Time(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (prop::collection::vec(1u64..6, 1..5), any::<bool>())
                .prop_map(|(cgroups, scan)| Step::Events(cgroups, scan)),
            1 => (1u32..4).prop_map(Step::Pod),
            1 => (1u32..4).prop_map(Step::Cgroup),
            1 => (0u64..60).prop_map(Step::Time),
        ]
    }

    proptest! {
        #[test]
        fn events_of_an_owner_stay_in_order(steps in prop::collection::vec(step(), 1..40)) {
            let (mut held, mut index, mut now) = (Held::default(), Index::new(true), Instant::now());
            let (mut number, mut out) = (0, Vec::new());
            for step in steps {
                match step {
                    Step::Pod(n) => index.pod_applied(Arc::new(fixture::pod(n))),
                    Step::Cgroup(n) => index.cgroup_made(n.into(), &cgroup_path(n), now),
                    Step::Time(millis) => {
                        now += Duration::from_millis(millis);
                        out.extend(held.release(&index, now));
                    }
                    Step::Events(cgroups, may_scan) => {
                        let events = cgroups.into_iter().map(|cgroup| {
                            number += 1;
                            fixture::event(Kind::Connect, number, cgroup)
                        });
                        out.extend(held.admit(events.collect(), &mut index, now, |index| {
                            if may_scan {
                                index.cgroup_made(1, &cgroup_path(1), now);
                            }
                            may_scan
                        }));
                    }
                }
            }
            out.extend(held.release_all(&index));
            prop_assert_eq!(out.len() as u64, number);
            let mut last = HashMap::new();
            for Attributed { event, .. } in out {
                let before = last.insert(event.owner.cgroup_id, event.id.cookie);
                prop_assert!(before < Some(event.id.cookie));
            }
        }
    }
}
