//! One subscriber: its queue, and what it is owed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tcptracer_event::LossSource;
use tcptracer_proto::EncodedEvent;
use tokio::sync::mpsc;

use super::history::Published;
use super::stream::{Item, Loss, Position, Status};
use crate::filter::{Matcher, Verdicts};
use crate::identity::{Attributed, ContainerKey};

/// A subscriber's end of its queue.
#[derive(Debug)]
pub struct Subscription {
    pub(super) items: mpsc::UnboundedReceiver<Item>,
    pub(super) queued: Arc<AtomicUsize>,
}

impl Subscription {
    /// The next item; `None` once the agent ends it or ends itself or, without a future, after the past.
    pub async fn next(&mut self) -> Option<Item> {
        let item = self.items.recv().await?;
        self.queued.fetch_sub(item.weight(), Ordering::Relaxed);
        Some(item)
    }
}

/// A subscriber's other end.
pub struct Subscriber {
    /// By which it can be ended.
    id: Option<String>,
    matcher: Matcher,
    /// Answers of the matcher by container, for this generation of the index.
    verdicts: HashMap<ContainerKey, Verdicts>,
    items: mpsc::UnboundedSender<Item>,
    /// What the queue holds. Only this side adds, so a look at it is never too low.
    queued: Arc<AtomicUsize>,
    max_queued: usize,
    /// Losses that found no room either; one for each source.
    owed: Vec<Loss>,
    /// The status has changed, and found no room.
    status_owed: bool,
}

impl Subscriber {
    /// A subscriber and its end. Its queue has room for `max_queued` events and messages.
    pub fn new(id: Option<String>, matcher: Matcher, max_queued: usize) -> (Self, Subscription) {
        let (items, receiver) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let subscription = Subscription {
            items: receiver,
            queued: Arc::clone(&queued),
        };
        let subscriber = Self {
            id,
            matcher,
            verdicts: HashMap::new(),
            items,
            queued,
            max_queued,
            owed: Vec::new(),
            status_owed: false,
        };
        (subscriber, subscription)
    }

    /// What it wants.
    pub fn matcher(&self) -> &Matcher {
        &self.matcher
    }

    /// It has gone; what it wanted.
    pub fn into_matcher(self) -> Matcher {
        self.matcher
    }

    /// Whether it is there and goes by this id.
    pub fn goes_by(&self, id: &str) -> bool {
        self.id.as_deref() == Some(id) && !self.has_gone()
    }

    /// Whether it has dropped its end.
    pub fn has_gone(&self) -> bool {
        self.items.is_closed()
    }

    /// What containers are called has changed.
    pub fn forget_verdicts(&mut self) {
        self.verdicts.clear();
    }

    /// The status has changed.
    pub fn owe_status(&mut self) {
        self.status_owed = true;
    }

    /// Sends those of the events that it wants and has room for; returns how many it lost. `before` is where they
    /// begin.
    pub fn offer(&mut self, events: &[Arc<Published>], before: Position) -> u64 {
        let mut wanted = Vec::new();
        for published in events {
            let Attributed {
                event,
                container,
                who,
            } = &published.event;
            let verdicts = match container {
                Some(key) => *self
                    .verdicts
                    .entry(*key)
                    .or_insert_with(|| self.matcher.judge(who)),
                None => self.matcher.judge(who),
            };
            if self.matcher.passes(verdicts, event) {
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

    /// It has lost this, and is to be told.
    pub fn owe(&mut self, loss: Loss) {
        match self.owed.iter_mut().find(|o| o.source == loss.source) {
            Some(owed) => owed.count += loss.count,
            None if loss.count > 0 => self.owed.push(loss),
            None => {}
        }
    }

    /// Sends what it is owed, if there is room. Losses first: who has the status resumes behind them.
    pub fn settle(&mut self, status: &Arc<Status>, position: Position) {
        self.tell_losses(position);
        if self.status_owed && self.owed.is_empty() && self.room() > 0 {
            self.status_owed = false;
            self.send(Item::Status(Arc::clone(status), position, true));
        }
    }

    /// The same, whatever room there is.
    pub fn settle_all(&mut self, status: &Arc<Status>, position: Position) {
        self.send_losses(position);
        if std::mem::take(&mut self.status_owed) {
            self.send(Item::Status(Arc::clone(status), position, true));
        }
    }

    /// `position` is behind all of them.
    fn tell_losses(&mut self, position: Position) {
        if self.room() > self.owed.len() {
            self.send_losses(position);
        }
    }

    fn send_losses(&mut self, position: Position) {
        let mut owed = std::mem::take(&mut self.owed).into_iter();
        while let Some(loss) = owed.next() {
            let behind = (owed.len() == 0).then_some(position);
            self.send(Item::Lost(loss, behind));
        }
    }

    /// Sends what has been gathered, and empties it.
    pub fn send_events(&self, events: &mut Vec<EncodedEvent>) {
        if !events.is_empty() {
            self.send(Item::Events(std::mem::take(events)));
        }
    }

    /// Somebody who is gone misses nothing.
    pub fn send(&self, item: Item) {
        self.queued.fetch_add(item.weight(), Ordering::Relaxed);
        let _ = self.items.send(item);
    }
}
