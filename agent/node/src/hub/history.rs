//! What was published and what was lost, up to a limit.

use std::collections::VecDeque;
use std::sync::Arc;

use tcptracer_event::Nanos;
use tcptracer_proto::EncodedEvent;

use super::stream::{Loss, Past, Position};
use crate::filter::Matcher;
use crate::identity::Attributed;

/// An event on its way to subscribers.
pub struct Published {
    /// Its number in this run, from 1.
    pub sequence: u64,
    /// What happened, and whose it is.
    pub event: Attributed,
    /// Both, encoded.
    pub bytes: EncodedEvent,
}

/// What the history holds.
pub enum Entry {
    /// An event.
    Event(Arc<Published>),
    /// A run of losses; the time is that of the last, and the place is behind it.
    Lost(Loss, Nanos, Position),
}

/// The latest events, and what was lost between them.
pub struct History {
    pub(super) entries: VecDeque<Entry>,
    events: usize,
    max_events: usize,
}

impl History {
    /// Keeps `max_events` events.
    pub fn new(max_events: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            events: 0,
            max_events,
        }
    }

    /// How many events it holds.
    pub fn events(&self) -> usize {
        self.events
    }

    /// These were published.
    pub fn add(&mut self, published: Vec<Arc<Published>>) {
        self.events += published.len();
        self.entries.extend(published.into_iter().map(Entry::Event));
        self.trim();
    }

    /// This was lost by `now`, and `behind` is the place behind it.
    pub fn add_loss(&mut self, loss: Loss, now: Nanos, behind: Position) {
        // One entry for a run of losses without a pause: the history does not grow without events.
        match self.entries.back_mut() {
            Some(Entry::Lost(last, time, place))
                if last.source == loss.source && place.lost + loss.count == behind.lost =>
            {
                last.count += loss.count;
                *time = now;
                *place = behind;
            }
            _ => self.entries.push_back(Entry::Lost(loss, now, behind)),
        }
        self.trim();
    }

    /// What somebody gets of it, in order.
    pub fn entries_of(&self, matcher: &Matcher, past: Past) -> Vec<&Entry> {
        let mut entries: Vec<&Entry> = Vec::new();
        let mut reached = 0;
        // Backwards: the past ends at the first entry that is too old. Times are not in order, so they end nothing.
        for entry in self.entries.iter().rev() {
            let time = match entry {
                Entry::Event(published) => published.event.event.time,
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
                let Attributed { event, who, .. } = &published.event;
                if !matcher.passes(matcher.judge(who), event) {
                    continue;
                }
                reached += 1;
            }
            entries.push(entry);
        }
        entries.reverse();
        entries
    }

    /// The number of the oldest event that it holds.
    pub fn oldest(&self) -> Option<u64> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::Event(published) => Some(published.sequence),
            Entry::Lost(..) => None,
        })
    }

    fn trim(&mut self) {
        while self.events > self.max_events || self.entries.len() > 2 * self.max_events {
            if let Some(Entry::Event(_)) = self.entries.pop_front() {
                self.events -= 1;
            }
        }
    }
}
