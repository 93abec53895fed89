//! Events that wait to be named.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::event::Event;

/// How long an event waits. A pod's name is known before its container, or soon after.
const PATIENCE: Duration = Duration::from_millis(50);

/// Events that wait at most; with more, the oldest go unnamed.
const CAPACITY: usize = 4096;

/// Events in the order in which they came. Its owner lets go of those that can be named, so all events of
/// a container that is not known are in here, and stay in order.
#[derive(Debug, Default)]
pub struct Held {
    events: VecDeque<(Instant, Event)>,
}

impl Held {
    /// Keeps an event; returns one that has to go instead if there is no room.
    pub fn keep(&mut self, event: Event, now: Instant) -> Option<Event> {
        self.events.push_back((now + PATIENCE, event));
        if self.events.len() <= CAPACITY {
            return None;
        }
        self.events.pop_front().map(|(_, event)| event)
    }

    /// Takes out those that have waited long enough, or that `is_named` by now.
    pub fn release(&mut self, now: Instant, is_named: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut released = Vec::new();
        self.events.retain(|(until, event)| {
            let stays = *until > now && !is_named(event);
            if !stays {
                released.push(*event);
            }
            stays
        });
        released
    }

    /// Takes out all.
    pub fn release_all(&mut self) -> Vec<Event> {
        self.events.drain(..).map(|(_, event)| event).collect()
    }

    /// When the first has waited long enough.
    pub fn due(&self) -> Option<Instant> {
        self.events.front().map(|(until, _)| *until)
    }
}
