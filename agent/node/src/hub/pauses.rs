//! When nothing was traced.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use tcptracer_event::Nanos;

use super::stream::{Past, Pause, Position};

/// How many pauses are kept. With the default of `--detach-after` they are at least a minute apart.
const MAX: usize = 1024;

/// A pause, and where it is.
#[derive(Clone, Copy, Debug)]
struct Noted {
    pause: Pause,
    start: Nanos,
    /// As long as it lasts, later than anything.
    end: Nanos,
    behind: Position,
}

/// The pauses of this run, in order. They outlive the events beside them.
#[derive(Debug, Default)]
pub struct Pauses {
    noted: VecDeque<Noted>,
    count: u64,
    /// How long those took that have ended. Whoever sets the clock does not change that.
    total: Duration,
}

impl Pauses {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How long nothing was traced, up to `now`.
    pub fn total(&self, now: Nanos) -> Duration {
        let open = self.noted.back().filter(|last| last.pause.to.is_none());
        self.total + open.map_or(Duration::ZERO, |last| length(last.start, now))
    }

    /// Since when nothing is traced, if that is so.
    pub fn current(&self) -> Option<Timestamp> {
        let last = self.last()?;
        last.to.is_none().then_some(last.from)
    }

    /// The last one.
    pub fn last(&self) -> Option<Pause> {
        Some(self.noted.back()?.pause)
    }

    /// One begins, at `from`, which is `now`. `place` is where nothing of it has been heard.
    pub fn begin(&mut self, from: Timestamp, now: Nanos, place: Position) {
        self.count += 1;
        self.noted.push_back(Noted {
            pause: Pause { from, to: None },
            start: now,
            end: Nanos::MAX,
            behind: Position {
                lost: place.lost + 1,
                ..place
            },
        });
        if self.noted.len() > MAX {
            self.noted.pop_front();
        }
    }

    /// It ends, at `to`, which is `now`.
    pub fn end(&mut self, to: Timestamp, now: Nanos) {
        if let Some(last) = self.noted.back_mut() {
            self.total += length(last.start, now);
            last.pause.to = Some(to);
            last.end = now;
        }
    }

    /// Those of the past that somebody asks for, with the places behind them. `first` is the first event that it gets.
    pub fn of(&self, past: Past, first: Option<u64>) -> impl Iterator<Item = (Pause, Position)> {
        let passes = move |noted: &&Noted| match past {
            Past::None => false,
            Past::Since(since) => noted.end >= since,
            Past::Last(_) => first.is_some_and(|first| noted.behind.sequence >= first),
            Past::After(at) => noted.behind.sequence >= at.sequence && noted.behind.lost > at.lost,
        };
        let noted = self.noted.iter().filter(passes);
        noted.map(|noted| (noted.pause, noted.behind))
    }
}

fn length(from: Nanos, to: Nanos) -> Duration {
    Duration::from_nanos(to.saturating_sub(from))
}
