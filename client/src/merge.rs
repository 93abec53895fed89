/*!
Events of several nodes in the order of their times, within bounds.

An item goes out once every source has shown something later, or it has waited long enough, or there is no room: a node
that is silent or slow delays the others by a bounded time, and never stops them. Within a source the order is kept as
it came, whatever the times say.

What nodes remember of the past comes all at once, at each node's own pace. So at first everything is held until all
sources have caught up, or for a longer, but also bounded, time.

Pure: time is given, nothing is waited for.
*/

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// How much may wait, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Items that are held at most; with more, the oldest goes out.
    pub items: usize,
    /// How long an item waits for other sources.
    pub delay: Duration,
}

/// A node, as a number.
pub type SourceId = u64;

/// What waits to go out.
pub struct Merge<T> {
    limits: Limits,
    heap: BinaryHeap<Reverse<Item<T>>>,
    /// Of each source, the latest time that it has shown.
    shown: HashMap<SourceId, Option<Timestamp>>,
    arrivals: u64,
    gathering: Option<Gathering>,
}

/// The past is being collected.
struct Gathering {
    until: Instant,
    /// Only so many of the latest are wanted.
    last: Option<usize>,
}

struct Item<T> {
    time: Timestamp,
    /// Breaks ties: first come, first out.
    arrival: u64,
    deadline: Instant,
    value: T,
}

impl<T> Merge<T> {
    /// Nothing waits, and no source is known.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            heap: BinaryHeap::new(),
            shown: HashMap::new(),
            arrivals: 0,
            gathering: None,
        }
    }

    /// Holds everything until [`Self::caught_up`] or `until`. Of what came until then, only the `last` are kept.
    pub fn gather(&mut self, until: Instant, last: Option<usize>) {
        self.gathering = Some(Gathering { until, last });
    }

    /// All sources have shown what they remember of the past.
    pub fn caught_up(&mut self) {
        self.gathering = None;
    }

    /// Whether the past is still being collected.
    pub fn is_gathering(&self) -> bool {
        self.gathering.is_some()
    }

    /// A source whose events are to be waited for.
    pub fn add(&mut self, source: SourceId) {
        self.shown.entry(source).or_default();
    }

    /// A source from which nothing is to be expected for now. What it has sent stays.
    pub fn remove(&mut self, source: SourceId) {
        self.shown.remove(&source);
    }

    /// Takes an item. One without a time is put where its source stands.
    pub fn push(&mut self, source: SourceId, time: Option<Timestamp>, value: T, now: Instant) {
        let shown = self.shown.entry(source).or_default();
        let time = (*shown).max(time).unwrap_or(Timestamp::UNIX_EPOCH);
        *shown = Some(time);
        self.heap.push(Reverse(Item {
            time,
            arrival: self.arrivals,
            deadline: now + self.limits.delay,
            value,
        }));
        self.arrivals += 1;
        if let Some(Gathering { last: Some(n), .. }) = self.gathering
            && self.heap.len() > n
        {
            self.heap.pop();
        }
    }

    /// The next item that may go out.
    pub fn pop(&mut self, now: Instant) -> Option<T> {
        if self.gathering.as_ref().is_some_and(|g| g.until <= now) {
            self.gathering = None;
        }
        let due = self.heap.peek().is_some_and(|Reverse(item)| {
            self.heap.len() > self.limits.items
                || self.gathering.is_none() && (item.deadline <= now || self.is_passed(item.time))
        });
        if due { self.pop_anyway() } else { None }
    }

    /// The next item, at the end.
    pub fn pop_anyway(&mut self) -> Option<T> {
        self.heap.pop().map(|Reverse(item)| item.value)
    }

    /// When to look again, if nothing comes before.
    pub fn deadline(&self) -> Option<Instant> {
        let Reverse(first) = self.heap.peek()?;
        Some(match &self.gathering {
            Some(gathering) => gathering.until,
            None => first.deadline,
        })
    }

    /// Whether no source can show anything earlier, as far as one can tell.
    fn is_passed(&self, time: Timestamp) -> bool {
        self.shown
            .values()
            .all(|shown| shown.is_some_and(|shown| shown >= time))
    }
}

impl<T> Item<T> {
    fn key(&self) -> (Timestamp, u64) {
        (self.time, self.arrival)
    }
}

impl<T> Ord for Item<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl<T> PartialOrd for Item<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Item<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Item<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_millis(250);

    struct World {
        merge: Merge<&'static str>,
        now: Instant,
    }

    impl World {
        fn new(items: usize, sources: u64) -> Self {
            let mut merge = Merge::new(Limits {
                items,
                delay: DELAY,
            });
            (0..sources).for_each(|s| merge.add(s));
            Self {
                merge,
                now: Instant::now(),
            }
        }

        fn push(&mut self, source: SourceId, millis: i64, value: &'static str) {
            let time = Timestamp::from_millisecond(millis).expect("a time");
            self.merge.push(source, Some(time), value, self.now);
        }

        fn out(&mut self) -> Vec<&'static str> {
            std::iter::from_fn(|| self.merge.pop(self.now)).collect()
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
        }
    }

    #[test]
    fn one_source_is_not_delayed_nor_reordered() {
        let mut world = World::new(10, 1);
        world.push(0, 5, "a");
        world.push(0, 3, "b");
        world.push(0, 7, "c");
        assert_eq!(world.out(), ["a", "b", "c"]);
        assert_eq!(world.merge.deadline(), None);
    }

    #[test]
    fn an_item_waits_for_what_may_be_earlier() {
        let mut world = World::new(10, 2);
        world.push(0, 5, "a5");
        world.push(0, 9, "a9");
        assert!(world.out().is_empty());
        world.push(1, 7, "b7");
        assert_eq!(world.out(), ["a5", "b7"]);
        world.push(1, 8, "b8");
        world.push(1, 9, "b9");
        assert_eq!(world.out(), ["b8", "a9", "b9"]);
    }

    #[test]
    fn a_silent_source_delays_by_a_bounded_time() {
        let mut world = World::new(10, 2);
        world.push(0, 5, "a5");
        world.pass(DELAY / 2);
        world.push(0, 6, "a6");
        assert_eq!(world.merge.deadline(), Some(world.now + DELAY / 2));
        assert!(world.out().is_empty());
        world.pass(DELAY / 2);
        assert_eq!(world.out(), ["a5"]);
        world.pass(DELAY / 2);
        assert_eq!(world.out(), ["a6"]);
        assert_eq!(world.merge.deadline(), None);
    }

    #[test]
    fn a_source_that_has_gone_delays_nobody() {
        let mut world = World::new(10, 2);
        world.push(0, 5, "a5");
        world.merge.remove(1);
        assert_eq!(world.out(), ["a5"]);
    }

    #[test]
    fn without_room_the_oldest_goes_out() {
        let mut world = World::new(2, 2);
        world.push(0, 6, "a6");
        world.push(0, 7, "a7");
        assert!(world.out().is_empty());
        world.push(0, 8, "a8");
        assert_eq!(world.out(), ["a6"]);
    }

    #[test]
    fn an_item_without_a_time_stays_in_its_place() {
        let mut world = World::new(10, 1);
        world.push(0, 5, "a");
        world.merge.push(0, None, "b", world.now);
        world.push(0, 6, "c");
        assert_eq!(world.out(), ["a", "b", "c"]);
    }

    #[test]
    fn the_past_is_held_until_all_have_caught_up() {
        let mut world = World::new(10, 2);
        world.merge.gather(world.now + DELAY * 20, None);
        world.push(0, 5, "a5");
        world.push(1, 6, "b6");
        world.pass(DELAY * 2);
        assert!(world.out().is_empty());
        world.push(1, 7, "b7");
        world.push(0, 6, "a6");
        world.merge.caught_up();
        world.pass(DELAY);
        assert_eq!(world.out(), ["a5", "b6", "a6", "b7"]);
    }

    #[test]
    fn the_past_is_waited_for_a_bounded_time() {
        let mut world = World::new(10, 2);
        world.merge.gather(world.now + DELAY * 20, None);
        world.push(0, 5, "a5");
        assert_eq!(world.merge.deadline(), Some(world.now + DELAY * 20));
        world.pass(DELAY * 20);
        assert_eq!(world.out(), ["a5"]);
        assert!(!world.merge.is_gathering());
    }

    #[test]
    fn of_the_past_the_last_of_all_sources_are_kept() {
        let mut world = World::new(10, 2);
        world.merge.gather(world.now + DELAY, Some(3));
        world.push(0, 1, "a1");
        world.push(0, 5, "a5");
        world.push(0, 6, "a6");
        world.push(1, 2, "b2");
        world.push(1, 4, "b4");
        world.push(1, 7, "b7");
        assert!(world.out().is_empty());
        world.merge.caught_up();
        world.push(0, 8, "a8");
        world.pass(DELAY);
        assert_eq!(world.out(), ["a5", "a6", "b7", "a8"]);
    }
}
