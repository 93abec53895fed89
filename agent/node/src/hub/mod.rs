/*!
Who gets which event: subscribers, their queues, and a bounded history.

One task owns the [`Hub`] and never waits for anyone. A subscriber has a queue with room for so many
events and messages; what does not fit is counted and told to it, in its place in the stream, as soon as
there is room.
An event is numbered and encoded once, and everybody gets the same bytes.
*/

mod history;
mod pauses;
mod stream;
mod subscriber;
#[cfg(test)]
mod tests;

pub use stream::{Item, Loss, Past, Pause, Position, Status, Taken};
pub use subscriber::Subscription;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tcptracer_event::{LossSource, Nanos};
use tcptracer_proto::EncodedEvent;

use crate::filter::Matcher;
use crate::identity::Attributed;
use history::{Entry, History, Published};
use pauses::Pauses;
use subscriber::Subscriber;

/// Events in one message, at most.
const BATCH: usize = 512;

/// Subscribers and history.
pub struct Hub {
    subscribers: HashMap<u64, Subscriber>,
    /// What subscribers that have left had asked for.
    departed: Vec<Matcher>,
    next_subscriber: u64,
    history: History,
    max_queued: usize,
    sequence: u64,
    status: Arc<Status>,
    /// What everybody was told to have lost, in all.
    losses: BTreeMap<LossSource, u64>,
    /// Containers for which the filter map has no room now.
    without_room: u64,
    pauses: Pauses,
}

impl Hub {
    /// Keeps `max_history` events, and `max_queued` for each subscriber: at least as many.
    pub fn new(max_history: usize, max_queued: usize) -> Self {
        Self {
            subscribers: HashMap::new(),
            departed: Vec::new(),
            next_subscriber: 0,
            history: History::new(max_history),
            max_queued: max_queued.max(max_history),
            sequence: 0,
            status: Arc::default(),
            losses: BTreeMap::new(),
            without_room: 0,
            pauses: Pauses::default(),
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
            lost: self.losses.values().sum::<u64>() + self.pauses.count(),
        }
    }

    /// How many subscribers there are.
    pub fn subscribers(&self) -> usize {
        self.subscribers.len()
    }

    /// What was lost in all, but for subscribers that were too slow.
    pub fn losses(&self) -> impl Iterator<Item = Loss> {
        self.losses
            .iter()
            .map(|(&source, &count)| Loss { source, count })
    }

    /// How many events the history holds.
    pub fn history_len(&self) -> usize {
        self.history.events()
    }

    /// What the subscribers want.
    pub fn matchers(&self) -> impl Iterator<Item = &Matcher> {
        self.subscribers.values().map(Subscriber::matcher)
    }

    /// What subscribers had asked for that have left since the last call.
    pub fn take_departed(&mut self) -> Vec<Matcher> {
        std::mem::take(&mut self.departed)
    }

    fn let_go(&mut self) {
        let gone = self
            .subscribers
            .extract_if(|_, subscriber| subscriber.has_gone());
        let departed = gone.map(|(_, subscriber)| subscriber.into_matcher());
        self.departed.extend(departed);
    }

    /// Adds a subscriber, which first gets the status, what it wants of the past, and the status again, and then what
    /// goes on being lost: the containers without room in the filter map, but for those of which the past told. A
    /// subscriber that asks for nothing of the past, and whose arrival ended a pause (`woke`), is sent that pause.
    /// It goes when it drops its end, or is ended by its id, or at once after the past if that is all it wants.
    pub fn subscribe(
        &mut self,
        id: Option<String>,
        matcher: Matcher,
        past: Past,
        follow: bool,
        woke: bool,
    ) -> Result<Subscription, Taken> {
        if id.as_ref().is_some_and(|id| self.find(id).is_some()) {
            return Err(Taken);
        }
        let (subscriber, subscription) = Subscriber::new(id, matcher, self.max_queued);
        let status = |live| Item::Status(Arc::clone(&self.status), self.position(), live);

        subscriber.send(status(false));
        let told = self.send_past(&subscriber, past);
        if let Some(pause) = self.pauses.last().filter(|_| woke && past == Past::None) {
            subscriber.send(Item::Paused(pause, self.position()));
        }
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
        Ok(subscription)
    }

    /// The number of the subscriber that goes by this id; of none that has gone.
    pub fn find(&self, id: &str) -> Option<u64> {
        let mut subscribers = self.subscribers.iter();
        let found = subscribers.find(|(_, s)| s.goes_by(id));
        found.map(|(number, _)| *number)
    }

    /// Whether the subscriber of this number is still there.
    pub fn has(&self, number: u64) -> bool {
        self.subscribers.contains_key(&number)
    }

    /// Ends a subscription: what waits in its queue is followed by all that it is owed, whatever room there is, and that
    /// by the end.
    pub fn end(&mut self, number: u64) {
        let position = self.position();
        if let Some(mut subscriber) = self.subscribers.remove(&number) {
            subscriber.settle_all(&self.status, position);
            self.departed.push(subscriber.into_matcher());
        }
    }

    /// Ends all subscriptions.
    pub fn end_all(&mut self) {
        let position = self.position();
        for (_, mut subscriber) in self.subscribers.drain() {
            subscriber.settle_all(&self.status, position);
        }
    }

    /// Returns of how many containers without room in the filter map it told.
    fn send_past(&self, subscriber: &Subscriber, past: Past) -> u64 {
        let mut heard = Position::default();
        if let Past::After(position) = past {
            let first_held = self.history.oldest().unwrap_or(self.sequence + 1);
            let count = first_held.saturating_sub(position.sequence.saturating_add(1));
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
        let entries = self.history.entries_of(subscriber.matcher(), past);
        let first = entries.iter().find_map(|entry| match entry {
            Entry::Event(published) => Some(published.sequence),
            Entry::Lost(..) => None,
        });
        // Who resumes at a pause is not to get again what it has had, or more than it has asked for.
        let heard_of = first.map_or(heard.sequence, |first| heard.sequence.max(first - 1));
        let place = |behind: Position| Position {
            sequence: behind.sequence.max(heard_of),
            ..behind
        };
        let mut pauses = self.pauses.of(past, first).peekable();
        for entry in entries {
            let is_before = |(_, behind): &(Pause, Position)| match entry {
                Entry::Event(published) => behind.sequence < published.sequence,
                Entry::Lost(_, _, place) => behind.lost < place.lost,
            };
            while let Some((pause, behind)) = pauses.next_if(is_before) {
                subscriber.send_events(&mut batch);
                subscriber.send(Item::Paused(pause, place(behind)));
            }
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
        for (pause, behind) in pauses {
            subscriber.send(Item::Paused(pause, place(behind)));
        }
        told
    }

    /// Numbers events in order, has each encoded once, and hands them out; returns how many of them subscribers were too
    /// slow for, in all. `encode` gets an event's number.
    pub fn publish(
        &mut self,
        events: Vec<Attributed>,
        encode: impl Fn(u64, &Attributed) -> EncodedEvent,
    ) -> u64 {
        let before = self.position();
        let published = events.into_iter().map(|event| {
            self.sequence += 1;
            Arc::new(Published {
                sequence: self.sequence,
                bytes: encode(self.sequence, &event),
                event,
            })
        });
        let published: Vec<_> = published.collect();
        let mut lost = 0;
        for subscriber in self.subscribers.values_mut() {
            lost += subscriber.offer(&published, before);
        }
        self.let_go();
        self.history.add(published);
        lost
    }

    /// Tells everybody that something was lost, by `now`.
    pub fn lost(&mut self, loss: Loss, now: Nanos) {
        *self.losses.entry(loss.source).or_default() += loss.count;
        let position = self.position();
        for subscriber in self.subscribers.values_mut() {
            subscriber.owe(loss);
            subscriber.settle(&self.status, position);
        }
        self.history.add_loss(loss, now, position);
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

    /// Tracing pauses now, at `from`. There is no subscriber to report it to.
    pub fn pause(&mut self, from: Timestamp, now: Nanos) {
        self.pauses.begin(from, now, self.position());
    }

    /// Tracing goes on, at `to`, which is `now`.
    pub fn end_pause(&mut self, to: Timestamp, now: Nanos) {
        self.pauses.end(to, now);
    }

    /// Since when nothing is traced, if that is so.
    pub fn paused_since(&self) -> Option<Timestamp> {
        self.pauses.current()
    }

    /// How long nothing was traced in this run, up to `now`.
    pub fn paused_for(&self, now: Nanos) -> Duration {
        self.pauses.total(now)
    }

    /// Tells everybody how the node fares, if that has changed.
    pub fn set_status(&mut self, status: Status) {
        if *self.status == status {
            return;
        }
        self.status = Arc::new(status);
        let position = self.position();
        for subscriber in self.subscribers.values_mut() {
            subscriber.owe_status();
            subscriber.settle(&self.status, position);
        }
    }

    /// What containers are called has changed.
    pub fn forget_verdicts(&mut self) {
        for subscriber in self.subscribers.values_mut() {
            subscriber.forget_verdicts();
        }
    }

    /// Tells losses to those who have caught up, and says whether somebody has gone. To be called now
    /// and then.
    pub fn look_after(&mut self) -> bool {
        let before = self.subscribers.len();
        let position = self.position();
        for subscriber in self.subscribers.values_mut() {
            subscriber.settle(&self.status, position);
        }
        self.let_go();
        self.subscribers.len() != before
    }
}
