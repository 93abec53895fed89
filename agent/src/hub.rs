/*!
Who gets which event: subscribers, their queues, and a bounded history.

One task owns the [`Hub`] and never waits for anyone. A subscriber has a queue with room for so many
events and messages; what does not fit is counted and told to it, in its place in the stream, as soon as
there is room.
An event is encoded before it comes here, and everybody gets the same bytes.
*/

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tcptracer_proto::EncodedEvent;
use tokio::sync::mpsc;

use crate::event::{Event, Nanos};
use crate::filter::{Matcher, Verdicts};
use crate::identity::{Attribution, ContainerKey};

/// Events in one message, at most.
const BATCH: usize = 512;

/// Where something was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LossSource {
    /// The kernel's ring was full.
    Ring,
    /// The kernel's table of connections was full.
    Connections,
    /// Connections ended that were not followed.
    Untracked,
    /// This process was too slow.
    Agent,
    /// The subscriber was too slow.
    Subscriber,
    /// The history does not reach back so far.
    History,
    /// Containers for which the filter map had no room.
    FilterMap,
}

/// So much was lost there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Where.
    pub source: LossSource,
    /// How much since the last time.
    pub count: u64,
}

/// A place in the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The last event before it.
    pub sequence: u64,
    /// What everybody was told to have lost before it, in all.
    pub lost: u64,
}

/// How the node fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The pods are known.
    pub pods_synced: bool,
    /// Why the source of pods does not answer.
    pub pods_error: Option<String>,
    /// What goes unseen.
    pub shortcomings: Vec<String>,
}

/// An event on its way to subscribers.
#[derive(Debug)]
pub struct Published {
    /// Its number in this run, from 1.
    pub sequence: u64,
    /// What happened.
    pub event: Event,
    /// Whose it is.
    pub who: Attribution,
    /// Both, encoded.
    pub bytes: EncodedEvent,
}

/// What to send of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// Nothing.
    None,
    /// Events at this time or later.
    Since(Nanos),
    /// So many of the latest that pass.
    Last(usize),
    /// What came after this.
    After(Position),
}

/// What a subscriber gets.
#[derive(Clone, Debug)]
pub enum Item {
    /// Events, in order.
    Events(Vec<EncodedEvent>),
    /// Something was lost here, and where to resume behind it; not given if more that was lost there follows.
    Lost(Loss, Option<Position>),
    /// How the node fares, where that is, and whether what follows is new.
    Status(Arc<Status>, Position, bool),
}

impl Item {
    /// How much of the queue it takes.
    fn weight(&self) -> usize {
        match self {
            Self::Events(events) => events.len(),
            Self::Lost(..) | Self::Status(..) => 1,
        }
    }
}

enum Entry {
    Event(Arc<Published>),
    /// A run of losses; the time is that of the last, and the place is behind it.
    Lost(Loss, Nanos, Position),
}

/// A subscriber's end of its queue.
#[derive(Debug)]
pub struct Subscription {
    items: mpsc::UnboundedReceiver<Item>,
    queued: Arc<AtomicUsize>,
}

impl Subscription {
    /// The next item; `None` once the agent ends or, without a future, after the past.
    pub async fn next(&mut self) -> Option<Item> {
        let item = self.items.recv().await?;
        self.queued.fetch_sub(item.weight(), Ordering::Relaxed);
        Some(item)
    }
}

struct Subscriber {
    matcher: Matcher,
    /// Answers of the matcher by container, for this generation of the index.
    verdicts: HashMap<Option<ContainerKey>, Verdicts>,
    items: mpsc::UnboundedSender<Item>,
    /// What the queue holds. Only this side adds, so a look at it is never too low.
    queued: Arc<AtomicUsize>,
    max_queued: usize,
    /// Losses that found no room either; one for each source.
    owed: Vec<Loss>,
    /// The status has changed, and found no room.
    status_owed: bool,
}

/// Subscribers and history.
pub struct Hub {
    subscribers: HashMap<u64, Subscriber>,
    next_subscriber: u64,
    history: VecDeque<Entry>,
    history_events: usize,
    max_history: usize,
    max_queued: usize,
    sequence: u64,
    status: Arc<Status>,
    /// Events that subscribers were too slow for, in all.
    subscriber_losses: u64,
    /// What everybody was told to have lost, in all.
    losses: BTreeMap<LossSource, u64>,
    /// Containers for which the filter map has no room now.
    without_room: u64,
}

impl Hub {
    /// Keeps `max_history` events, and `max_queued` for each subscriber: at least as many.
    pub fn new(max_history: usize, max_queued: usize) -> Self {
        Self {
            subscribers: HashMap::new(),
            next_subscriber: 0,
            history: VecDeque::new(),
            history_events: 0,
            max_history,
            max_queued: max_queued.max(max_history),
            sequence: 0,
            status: Arc::default(),
            subscriber_losses: 0,
            losses: BTreeMap::new(),
            without_room: 0,
        }
    }

    /// The number of the last event.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Behind the last event and the last loss.
    fn position(&self) -> Position {
        Position {
            sequence: self.sequence,
            lost: self.losses.values().sum(),
        }
    }

    /// Numbers the next event.
    pub fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// How many subscribers there are.
    pub fn subscribers(&self) -> usize {
        self.subscribers.len()
    }

    /// Events that subscribers were too slow for, in all.
    pub fn subscriber_losses(&self) -> u64 {
        self.subscriber_losses
    }

    /// What was lost in all, but for subscribers that were too slow.
    pub fn losses(&self) -> impl Iterator<Item = Loss> {
        self.losses
            .iter()
            .map(|(&source, &count)| Loss { source, count })
    }

    /// How many events the history holds.
    pub fn history_len(&self) -> usize {
        self.history_events
    }

    /// What the subscribers want.
    pub fn matchers(&self) -> impl Iterator<Item = &Matcher> {
        self.subscribers.values().map(|s| &s.matcher)
    }

    /// Adds a subscriber, which first gets the status, what it wants of the past, and the status again, and then what
    /// goes on being lost: the containers without room in the filter map, but for those of which the past told.
    /// It goes when it drops its end, or at once after the past if that is all it wants.
    pub fn subscribe(&mut self, matcher: Matcher, past: Past, follow: bool) -> Subscription {
        let (items, receiver) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let subscription = Subscription {
            items: receiver,
            queued: Arc::clone(&queued),
        };
        let subscriber = Subscriber {
            matcher,
            verdicts: HashMap::new(),
            items,
            queued,
            max_queued: self.max_queued,
            owed: Vec::new(),
            status_owed: false,
        };
        let status = |live| Item::Status(Arc::clone(&self.status), self.position(), live);

        subscriber.send(status(false));
        let told = self.send_past(&subscriber, past);
        subscriber.send(status(true));
        if follow {
            let count = self.without_room.saturating_sub(told);
            if count > 0 {
                let source = LossSource::FilterMap;
                let loss = Loss { source, count };
                subscriber.send(Item::Lost(loss, Some(self.position())));
            }
            self.subscribers.insert(self.next_subscriber, subscriber);
            self.next_subscriber += 1;
        }
        subscription
    }

    /// Returns of how many containers without room in the filter map it told.
    fn send_past(&self, subscriber: &Subscriber, past: Past) -> u64 {
        let mut heard = Position::default();
        if let Past::After(position) = past {
            let count = self.gone_since(position.sequence);
            let source = LossSource::History;
            heard = Position {
                sequence: position.sequence + count,
                ..position
            };
            if count > 0 {
                subscriber.send(Item::Lost(Loss { source, count }, Some(heard)));
            }
        }
        let mut told = 0;
        let mut batch = Vec::new();
        for entry in self.entries_of(&subscriber.matcher, past) {
            match entry {
                Entry::Event(published) => batch.push(published.bytes.clone()),
                Entry::Lost(loss, _, behind) => {
                    // Of a run, the rest.
                    let count = loss.count.min(behind.lost.saturating_sub(heard.lost));
                    if count == 0 {
                        continue;
                    }
                    let loss = Loss { count, ..*loss };
                    subscriber.send_events(&mut batch);
                    subscriber.send(Item::Lost(loss, Some(*behind)));
                    if loss.source == LossSource::FilterMap {
                        told += loss.count;
                    }
                }
            }
            if batch.len() == BATCH {
                subscriber.send_events(&mut batch);
            }
        }
        subscriber.send_events(&mut batch);
        told
    }

    /// What of the history somebody gets, in order.
    fn entries_of(&self, matcher: &Matcher, past: Past) -> Vec<&Entry> {
        let mut entries: Vec<&Entry> = Vec::new();
        let mut reached = 0;
        // Backwards: the past ends at the first entry that is too old. Times are not in order, so they end nothing.
        for entry in self.history.iter().rev() {
            let time = match entry {
                Entry::Event(published) => published.event.time,
                Entry::Lost(_, time, _) => *time,
            };
            match (past, entry) {
                (Past::None, _) => break,
                (Past::Last(n), Entry::Event(_)) if reached >= n => break,
                (Past::After(at), Entry::Event(p)) if p.sequence <= at.sequence => break,
                (Past::Since(since), _) if time < since => continue,
                _ => {}
            }
            if let Entry::Event(published) = entry {
                if !matcher.passes(matcher.judge(&published.who), &published.event) {
                    continue;
                }
                reached += 1;
            }
            entries.push(entry);
        }
        entries.reverse();
        entries
    }

    /// How many events after this one the history does not hold any more.
    fn gone_since(&self, sequence: u64) -> u64 {
        let oldest = self.history.iter().find_map(|entry| match entry {
            Entry::Event(published) => Some(published.sequence),
            Entry::Lost(..) => None,
        });
        let first_held = oldest.unwrap_or(self.sequence + 1);
        first_held.saturating_sub(sequence.saturating_add(1))
    }

    /// Hands out events, which have been numbered in order. `key` tells whose an event is within a
    /// generation of the index: the same key, the same attribution.
    pub fn publish(&mut self, events: Vec<(Option<ContainerKey>, Published)>) {
        let events: Vec<_> = events.into_iter().map(|(k, p)| (k, Arc::new(p))).collect();
        // They are the last that were numbered.
        let before = Position {
            sequence: self.sequence - events.len() as u64,
            ..self.position()
        };
        let mut lost = 0;
        self.subscribers.retain(|_, subscriber| {
            lost += subscriber.offer(&events, before);
            !subscriber.items.is_closed()
        });
        self.subscriber_losses += lost;
        for (_, published) in events {
            self.history.push_back(Entry::Event(published));
            self.history_events += 1;
        }
        self.trim();
    }

    /// Tells everybody that something was lost, by `now`.
    pub fn lost(&mut self, loss: Loss, now: Nanos) {
        *self.losses.entry(loss.source).or_default() += loss.count;
        let position = self.position();
        for subscriber in self.subscribers.values_mut() {
            subscriber.owe(loss);
            subscriber.settle(&self.status, position);
        }
        // One entry for a run of losses: the history does not grow without events.
        match self.history.back_mut() {
            Some(Entry::Lost(last, time, behind)) if last.source == loss.source => {
                last.count += loss.count;
                *time = now;
                *behind = position;
            }
            _ => self.history.push_back(Entry::Lost(loss, now, position)),
        }
        self.trim();
    }

    /// For so many containers the filter map has no room. Of more than before everybody is told, and how many more
    /// is returned; who subscribes later is told of all.
    pub fn set_without_room(&mut self, count: u64, now: Nanos) -> u64 {
        let more = count.saturating_sub(self.without_room);
        self.without_room = count;
        if more > 0 {
            let source = LossSource::FilterMap;
            self.lost(
                Loss {
                    source,
                    count: more,
                },
                now,
            );
        }
        more
    }

    /// Tells everybody how the node fares, if that has changed.
    pub fn set_status(&mut self, status: Status) {
        if *self.status == status {
            return;
        }
        self.status = Arc::new(status);
        let position = self.position();
        for subscriber in self.subscribers.values_mut() {
            subscriber.status_owed = true;
            subscriber.settle(&self.status, position);
        }
    }

    /// What containers are called has changed.
    pub fn forget_verdicts(&mut self) {
        for subscriber in self.subscribers.values_mut() {
            subscriber.verdicts.clear();
        }
    }

    /// Tells losses to those who have caught up, and says whether somebody has gone. To be called now
    /// and then.
    pub fn look_after(&mut self) -> bool {
        let before = self.subscribers.len();
        let position = self.position();
        self.subscribers.retain(|_, subscriber| {
            subscriber.settle(&self.status, position);
            !subscriber.items.is_closed()
        });
        self.subscribers.len() != before
    }

    fn trim(&mut self) {
        while self.history_events > self.max_history || self.history.len() > 2 * self.max_history {
            if let Some(Entry::Event(_)) = self.history.pop_front() {
                self.history_events -= 1;
            }
        }
    }
}

impl Subscriber {
    /// Sends those of the events that it wants and has room for; returns how many it lost. `before` is where they
    /// begin.
    fn offer(
        &mut self,
        events: &[(Option<ContainerKey>, Arc<Published>)],
        before: Position,
    ) -> u64 {
        let mut wanted = Vec::new();
        for (key, published) in events {
            let verdicts = match key {
                Some(_) => *self
                    .verdicts
                    .entry(*key)
                    .or_insert_with(|| self.matcher.judge(&published.who)),
                None => self.matcher.judge(&published.who),
            };
            if self.matcher.passes(verdicts, &published.event) {
                wanted.push(published.bytes.clone());
            }
        }
        if wanted.is_empty() {
            return 0;
        }
        self.tell_losses(before);
        // What was lost before has to be told before.
        let room = if self.owed.is_empty() { self.room() } else { 0 };
        let count = wanted.len().saturating_sub(room) as u64;
        wanted.truncate(room);
        self.send_events(&mut wanted);
        self.owe(Loss {
            source: LossSource::Subscriber,
            count,
        });
        count
    }

    fn room(&self) -> usize {
        let queued = self.queued.load(Ordering::Relaxed);
        self.max_queued.saturating_sub(queued)
    }

    fn owe(&mut self, loss: Loss) {
        match self.owed.iter_mut().find(|o| o.source == loss.source) {
            Some(owed) => owed.count += loss.count,
            None if loss.count > 0 => self.owed.push(loss),
            None => {}
        }
    }

    /// Sends what it is owed, if there is room. Losses first: who has the status resumes behind them.
    fn settle(&mut self, status: &Arc<Status>, position: Position) {
        self.tell_losses(position);
        if self.status_owed && self.owed.is_empty() && self.room() > 0 {
            self.status_owed = false;
            self.send(Item::Status(Arc::clone(status), position, true));
        }
    }

    /// `position` is behind all of them.
    fn tell_losses(&mut self, position: Position) {
        if self.room() > self.owed.len() {
            let mut owed = std::mem::take(&mut self.owed).into_iter();
            while let Some(loss) = owed.next() {
                let behind = (owed.len() == 0).then_some(position);
                self.send(Item::Lost(loss, behind));
            }
        }
    }

    fn send_events(&self, events: &mut Vec<EncodedEvent>) {
        if !events.is_empty() {
            self.send(Item::Events(std::mem::take(events)));
        }
    }

    /// Somebody who is gone misses nothing.
    fn send(&self, item: Item) {
        self.queued.fetch_add(item.weight(), Ordering::Relaxed);
        let _ = self.items.send(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Kind;
    use crate::filter::{Filter, What};
    use crate::fixture;

    /// What a subscriber found in its queue.
    #[derive(Debug, PartialEq, Eq)]
    enum Got {
        /// So many in one message.
        Events(usize),
        Lost(LossSource, u64),
        Status(u64, bool),
    }

    const LIVE: [Got; 2] = [Got::Status(0, false), Got::Status(0, true)];

    fn got(subscription: &mut Subscription) -> Vec<Got> {
        let mut all = Vec::new();
        while let Ok(item) = subscription.items.try_recv() {
            subscription
                .queued
                .fetch_sub(item.weight(), Ordering::Relaxed);
            all.push(match item {
                Item::Events(events) => Got::Events(events.len()),
                Item::Lost(loss, _) => Got::Lost(loss.source, loss.count),
                Item::Status(_, at, live) => Got::Status(at.sequence, live),
            });
        }
        all
    }

    fn everything() -> Matcher {
        Matcher::new(Vec::new(), Vec::new())
    }

    fn of_kind(kind: Kind) -> Matcher {
        let what = What {
            kinds: vec![kind],
            ..What::default()
        };
        let filter = Filter {
            what,
            ..Filter::default()
        };
        Matcher::new(vec![filter], Vec::new())
    }

    /// One event for each of these times.
    fn publish(hub: &mut Hub, kind: Kind, times: impl IntoIterator<Item = Nanos>) {
        let events = times
            .into_iter()
            .map(|time| {
                let event = Event {
                    time,
                    ..fixture::event(kind, time, 0)
                };
                let published = Published {
                    sequence: hub.next_sequence(),
                    event,
                    who: Attribution::Host,
                    bytes: EncodedEvent::new(&tcptracer_proto::v1::Event::default()),
                };
                (None, published)
            })
            .collect();
        hub.publish(events);
    }

    fn ring(count: u64) -> Loss {
        let source = LossSource::Ring;
        Loss { source, count }
    }

    /// For who has heard of no loss.
    fn after(sequence: u64) -> Past {
        Past::After(Position { sequence, lost: 0 })
    }

    /// The last position in a queue that is told with a loss or a live status.
    fn told(subscription: &mut Subscription) -> Position {
        let mut told = None;
        while let Ok(item) = subscription.items.try_recv() {
            match item {
                Item::Lost(_, Some(position)) | Item::Status(_, position, true) => {
                    told = Some(position);
                }
                _ => {}
            }
        }
        told.expect("a position")
    }

    /// What somebody gets of the past: between the two statuses.
    fn past(hub: &mut Hub, matcher: Matcher, past: Past) -> Vec<Got> {
        let mut all = got(&mut hub.subscribe(matcher, past, false));
        assert_eq!(all.remove(0), Got::Status(hub.sequence(), false));
        assert_eq!(all.pop(), Some(Got::Status(hub.sequence(), true)));
        all
    }

    #[test]
    fn everybody_gets_what_it_wants() {
        let mut hub = Hub::new(0, 10);
        let mut all = hub.subscribe(everything(), Past::None, true);
        let mut closes = hub.subscribe(of_kind(Kind::Close), Past::None, true);
        publish(&mut hub, Kind::Connect, 1..=2);
        publish(&mut hub, Kind::Close, 3..=3);
        let [first, second] = LIVE;
        assert_eq!(
            got(&mut all),
            [first, second, Got::Events(2), Got::Events(1)]
        );
        let [first, second] = LIVE;
        assert_eq!(got(&mut closes), [first, second, Got::Events(1)]);
        assert_eq!(hub.losses().collect::<Vec<_>>(), []);
    }

    #[test]
    fn who_is_slow_loses_its_own_and_is_told_in_its_place() {
        let mut hub = Hub::new(0, 5);
        let mut slow = hub.subscribe(everything(), Past::None, true);
        let mut quick = hub.subscribe(everything(), Past::None, true);
        got(&mut slow);
        got(&mut quick);
        for times in [1..=4, 5..=8, 9..=9] {
            let count = times.clone().count();
            publish(&mut hub, Kind::Connect, times);
            assert_eq!(got(&mut quick), [Got::Events(count)]);
        }
        assert_eq!(hub.subscriber_losses(), 4);
        assert_eq!(got(&mut slow), [Got::Events(4), Got::Events(1)]);
        publish(&mut hub, Kind::Connect, 10..=10);
        assert_eq!(
            got(&mut slow),
            [Got::Lost(LossSource::Subscriber, 4), Got::Events(1)]
        );
    }

    #[test]
    fn losses_that_found_no_room_are_told_also_without_events() {
        let mut hub = Hub::new(0, 5);
        let mut slow = hub.subscribe(everything(), Past::None, true);
        got(&mut slow);
        publish(&mut hub, Kind::Connect, 1..=6);
        hub.lost(ring(7), 6);
        assert_eq!(got(&mut slow), [Got::Events(5)]);
        hub.look_after();
        assert_eq!(
            got(&mut slow),
            [
                Got::Lost(LossSource::Subscriber, 1),
                Got::Lost(LossSource::Ring, 7)
            ]
        );
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let mut hub = Hub::new(0, 5);
        let gone = hub.subscribe(everything(), Past::None, true);
        let _stays = hub.subscribe(everything(), Past::None, true);
        assert_eq!(hub.subscribers(), 2);
        assert!(!hub.look_after());
        drop(gone);
        assert!(hub.look_after());
        assert_eq!((hub.subscribers(), hub.matchers().count()), (1, 1));
    }

    #[test]
    fn the_status_comes_when_it_has_changed() {
        let mut hub = Hub::new(0, 5);
        let mut watch = hub.subscribe(everything(), Past::None, true);
        let status = Status {
            pods_synced: true,
            ..Status::default()
        };
        hub.set_status(status.clone());
        hub.set_status(status);
        let [first, second] = LIVE;
        assert_eq!(got(&mut watch), [first, second, Got::Status(0, true)]);
    }

    #[test]
    fn the_status_waits_for_the_losses_before_it() {
        let mut hub = Hub::new(0, 5);
        let mut slow = hub.subscribe(everything(), Past::None, true);
        got(&mut slow);
        publish(&mut hub, Kind::Connect, 1..=4);
        publish(&mut hub, Kind::Connect, 5..=6);
        assert_eq!(slow.items.len(), 2);
        // Room for one: not for the loss and an event behind it.
        slow.queued.fetch_sub(1, Ordering::Relaxed);
        hub.set_status(Status {
            pods_synced: true,
            ..Status::default()
        });
        assert_eq!(slow.items.len(), 2);
        slow.queued.fetch_add(1, Ordering::Relaxed);
        assert_eq!(got(&mut slow), [Got::Events(4), Got::Events(1)]);
        hub.look_after();
        assert_eq!(
            got(&mut slow),
            [Got::Lost(LossSource::Subscriber, 1), Got::Status(6, true)]
        );
    }

    #[test]
    fn the_past_is_what_was_asked_for() {
        let mut hub = Hub::new(100, 100);
        publish(&mut hub, Kind::Connect, [10, 20]);
        // Times are not in order.
        publish(&mut hub, Kind::Close, [40, 30]);
        let events = |count| vec![Got::Events(count)];

        assert_eq!(past(&mut hub, everything(), Past::None), []);
        assert_eq!(past(&mut hub, everything(), Past::Last(3)), events(3));
        assert_eq!(
            past(&mut hub, of_kind(Kind::Connect), Past::Last(1)),
            events(1)
        );
        assert_eq!(past(&mut hub, everything(), Past::Since(20)), events(3));
        assert_eq!(past(&mut hub, everything(), Past::Since(35)), events(1));
        assert_eq!(past(&mut hub, everything(), after(1)), events(3));
        assert_eq!(past(&mut hub, everything(), after(4)), []);
        assert_eq!(hub.subscribers(), 0);
    }

    #[test]
    fn losses_of_the_past_have_their_place_and_time() {
        let mut hub = Hub::new(100, 100);
        hub.lost(ring(1), 5);
        publish(&mut hub, Kind::Connect, [10]);
        hub.lost(ring(2), 15);
        hub.lost(ring(3), 16);
        publish(&mut hub, Kind::Close, [20]);
        let lost = |count| Got::Lost(LossSource::Ring, count);

        let all = past(&mut hub, everything(), Past::Since(0));
        assert_eq!(all, [lost(1), Got::Events(1), lost(5), Got::Events(1)]);
        let some = past(&mut hub, everything(), Past::Since(16));
        assert_eq!(some, [lost(5), Got::Events(1)]);
        let late = past(&mut hub, everything(), Past::Since(17));
        assert_eq!(late, [Got::Events(1)]);
        let after = past(&mut hub, everything(), after(1));
        assert_eq!(after, [lost(5), Got::Events(1)]);
        assert_eq!(hub.losses().collect::<Vec<_>>(), [ring(6)]);
    }

    #[test]
    fn who_resumes_is_told_once_of_what_was_lost() {
        let mut hub = Hub::new(100, 100);
        let lost = |count| Got::Lost(LossSource::Ring, count);
        let mut live = hub.subscribe(everything(), Past::None, true);
        publish(&mut hub, Kind::Connect, [10]);
        hub.lost(ring(2), 15);
        let heard = told(&mut live);
        assert_eq!(
            heard,
            Position {
                sequence: 1,
                lost: 2
            }
        );
        assert_eq!(past(&mut hub, everything(), Past::After(heard)), []);
        // The run of losses goes on.
        hub.lost(ring(3), 16);
        publish(&mut hub, Kind::Connect, [20]);
        assert_eq!(
            past(&mut hub, everything(), Past::After(heard)),
            [lost(3), Got::Events(1)]
        );
        // Who was told by an event only has it all before it, and nothing behind it.
        assert_eq!(past(&mut hub, everything(), after(2)), []);
        hub.lost(ring(1), 25);
        assert_eq!(past(&mut hub, everything(), after(2)), [lost(1)]);

        // Who comes after a loss has its place by the status, and who resumes by the loss of the past.
        let heard = told(&mut hub.subscribe(everything(), Past::None, false));
        assert_eq!(past(&mut hub, everything(), Past::After(heard)), []);
        let mut resumed = hub.subscribe(everything(), after(1), false);
        let mut places = Vec::new();
        while let Ok(item) = resumed.items.try_recv() {
            if let Item::Lost(_, at) = item {
                places.push(at.map(|at| (at.sequence, at.lost)));
            }
        }
        assert_eq!(places, [Some((1, 5)), Some((2, 6))]);
    }

    #[test]
    fn the_place_behind_several_losses_comes_with_the_last() {
        let mut hub = Hub::new(0, 5);
        let mut slow = hub.subscribe(everything(), Past::None, true);
        got(&mut slow);
        publish(&mut hub, Kind::Connect, 1..=6);
        hub.lost(ring(7), 6);
        got(&mut slow);
        publish(&mut hub, Kind::Connect, 7..=8);
        let mut places = Vec::new();
        while let Ok(item) = slow.items.try_recv() {
            if let Item::Lost(loss, at) = item {
                places.push((loss.source, at.map(|at| (at.sequence, at.lost))));
            }
        }
        let expected = [
            (LossSource::Subscriber, None),
            (LossSource::Ring, Some((6, 7))),
        ];
        assert_eq!(places, expected);
    }

    #[test]
    fn who_was_told_what_the_history_lost_is_not_told_again() {
        let mut hub = Hub::new(3, 100);
        hub.lost(ring(1), 1);
        publish(&mut hub, Kind::Connect, 1..=5);
        let mut resumed = hub.subscribe(everything(), after(1), false);
        let first = std::iter::from_fn(|| resumed.items.try_recv().ok()).nth(1);
        let Some(Item::Lost(loss, Some(heard))) = first else {
            panic!("{first:?}");
        };
        assert_eq!((loss.source, loss.count), (LossSource::History, 1));
        assert_eq!(
            past(&mut hub, everything(), Past::After(heard)),
            [Got::Events(3)]
        );
    }

    #[test]
    fn the_history_is_bounded_and_says_what_it_does_not_hold() {
        let mut hub = Hub::new(3, 100);
        publish(&mut hub, Kind::Connect, 1..=5);
        assert_eq!(hub.history_len(), 3);
        assert_eq!(
            past(&mut hub, everything(), after(1)),
            [Got::Lost(LossSource::History, 1), Got::Events(3)]
        );
        // Without events there are no more losses than that either.
        for n in 0..100 {
            let source = [LossSource::Ring, LossSource::Agent][n % 2];
            hub.lost(Loss { source, count: 1 }, 6);
        }
        assert_eq!(hub.history.len(), 6);
    }

    #[test]
    fn a_batch_has_no_more_than_512() {
        let mut hub = Hub::new(1000, 1000);
        publish(&mut hub, Kind::Connect, 1..=1000);
        assert_eq!(
            past(&mut hub, everything(), Past::Last(1000)),
            [Got::Events(BATCH), Got::Events(1000 - BATCH)]
        );
    }

    #[test]
    fn who_comes_later_is_told_of_what_has_no_room() {
        let room = |count| Got::Lost(LossSource::FilterMap, count);
        let mut hub = Hub::new(100, 100);
        let mut early = hub.subscribe(everything(), Past::None, true);
        got(&mut early);
        assert_eq!(hub.set_without_room(2, 10), 2);
        assert_eq!(hub.set_without_room(2, 11), 0);
        assert_eq!(hub.set_without_room(3, 12), 1);
        assert_eq!(got(&mut early), [room(2), room(1)]);

        let [first, second] = LIVE;
        let mut late = hub.subscribe(everything(), Past::None, true);
        assert_eq!(got(&mut late), [first, second, room(3)]);
        // Once is enough.
        let [first, second] = LIVE;
        let mut late = hub.subscribe(everything(), Past::Since(0), true);
        assert_eq!(got(&mut late), [first, room(3), second]);

        assert_eq!(hub.set_without_room(0, 20), 0);
        let mut late = hub.subscribe(everything(), Past::None, true);
        assert_eq!(got(&mut late), LIVE);
        assert_eq!(
            hub.losses().collect::<Vec<_>>(),
            [Loss {
                source: LossSource::FilterMap,
                count: 3
            }]
        );
    }
}
