//! Kernel time and the time of day.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

use tcptracer_event::{Nanos, Seconds};

/// `CLOCK_MONOTONIC`, now.
pub fn monotonic_now() -> Nanos {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A moment, as the standard library has it; `None` if that is before all it knows.
pub fn instant(time: Nanos) -> Option<Instant> {
    let ago = monotonic_now().saturating_sub(time);
    Instant::now().checked_sub(Duration::from_nanos(ago))
}

/// Relates `CLOCK_MONOTONIC` to the time of day.
///
/// The relation is kept until the clock has been set, so that one moment is written alike in all
/// events; two readings of the clocks are never taken at the same instant.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Time of day at monotonic 0, in nanoseconds since 1970.
    epoch: i128,
}

impl Clock {
    /// A change of less than this many nanoseconds is an inexact reading.
    const TOLERANCE: u128 = 1_000_000;

    /// As the two clocks are now.
    pub fn now() -> Self {
        let (now, monotonic) = both_now();
        Self::new(now, monotonic)
    }

    /// `monotonic` is the same moment as `now`.
    pub fn new(now: Timestamp, monotonic: Nanos) -> Self {
        Self {
            epoch: now.as_nanosecond() - i128::from(monotonic),
        }
    }

    /// Follows the time of day if it was set since.
    pub fn keep_up(&mut self) {
        let (now, monotonic) = both_now();
        self.follow(now, monotonic);
    }

    /// Follows the time of day if it was set.
    pub fn follow(&mut self, now: Timestamp, monotonic: Nanos) {
        let new = Self::new(now, monotonic);
        if new.epoch.abs_diff(self.epoch) > Self::TOLERANCE {
            *self = new;
        }
    }

    /// The time of day of a moment.
    pub fn at(self, time: Nanos) -> Timestamp {
        // Out of range only if the clock is millennia off.
        match self.since_1970(time) {
            Some((second, nanos)) => Timestamp::new(second, nanos as i32),
            None => Timestamp::from_nanosecond(self.epoch + i128::from(time)),
        }
        .unwrap_or_default()
    }

    /// Seconds, and nanoseconds of the last one; `None` before 1970, and where 64 bits do not hold the moment.
    fn since_1970(self, time: Nanos) -> Option<(i64, u32)> {
        // Many are asked for: it takes no division of 128 bits.
        let nanos = u64::try_from(self.epoch + i128::from(time)).ok()?;
        Some(((nanos / NANOS) as i64, (nanos % NANOS) as u32))
    }
}

/// Writes moments as times of day in UTC, as [`Timestamp`] does.
#[derive(Clone, Debug)]
pub struct Moments {
    clock: Clock,
    seconds: Seconds,
}

impl Moments {
    /// Of a clock.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            seconds: Seconds::default(),
        }
    }

    /// Follows the time of day if it was set since.
    pub fn keep_up(&mut self) {
        self.clock.keep_up();
    }

    /// Appends the time of day of a moment.
    pub fn write(&mut self, time: Nanos, to: &mut String) {
        let Some((second, nanos)) = self.clock.since_1970(time) else {
            *to += &self.clock.at(time).to_string();
            return;
        };
        let show = |second| {
            Timestamp::from_second(second)
                .unwrap_or_default()
                .to_string()
        };
        self.seconds.write(to, second, nanos, show);
    }
}

const NANOS: u64 = 1_000_000_000;

/// Both clocks at nearly one moment. A thread that was interrupted between two readings reads again, since a relation
/// that is off by the pause looks like a clock that was set.
fn both_now() -> (Timestamp, Nanos) {
    const TRIES: usize = 16;
    const CLOSE: Nanos = 20_000;
    let read = || {
        let before = monotonic_now();
        let now = Timestamp::now();
        let apart = monotonic_now() - before;
        (apart, now, before + apart / 2)
    };
    let mut best = read();
    for _ in 1..TRIES {
        if best.0 < CLOSE {
            break;
        }
        let again = read();
        if again.0 < best.0 {
            best = again;
        }
    }
    (best.1, best.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn clock(now: i64, monotonic: Nanos) -> Clock {
        Clock::new(
            Timestamp::from_nanosecond(now.into()).expect("a time"),
            monotonic,
        )
    }

    #[test]
    fn moments_are_written_as_timestamps_are() {
        let seconds = [
            -62_135_596_800,
            -1,
            0,
            1,
            951_782_400,
            1_795_939_331,
            9_223_372_036,
        ];
        let fractions = [0, 1, 10, 999_999_999, 100_000_000, 123_456_000, 5];
        for second in seconds {
            for fraction in fractions {
                let at = Timestamp::from_second(second).expect("a time");
                let clock = Clock::new(at, 7);
                let mut moments = Moments::new(clock);
                for time in [7 + fraction, 7, 8 + fraction + NANOS, 7 + fraction] {
                    let mut written = String::new();
                    moments.write(time, &mut written);
                    assert_eq!(written, clock.at(time).to_string());
                }
            }
        }
    }

    #[test]
    fn the_clock_keeps_its_relation_until_the_time_is_set() {
        let mut steady = clock(2_000_000_000, 500);
        let first = steady.at(700);
        steady.follow(
            Timestamp::from_nanosecond(2_000_090_000).expect("a time"),
            600,
        );
        assert_eq!(steady.at(700), first);
        steady.follow(
            Timestamp::from_nanosecond(9_000_000_000).expect("a time"),
            600,
        );
        assert_eq!(steady.at(600).as_nanosecond(), 9_000_000_000);
    }
}
