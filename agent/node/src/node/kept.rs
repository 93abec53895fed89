//! Whose connections are followed although no subscription asks for them: those of leases, and for a while those of
//! subscribers that have left.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::handle::Lease;
use crate::filter::Matcher;

/// Subscriptions that have ended, at most, whose containers are still selected.
const MAX_DEPARTED: usize = 256;

/// What is kept, and until when.
pub struct Kept {
    /// Each as long as somebody holds the lease.
    leases: Vec<(Weak<()>, Matcher)>,
    /// A client that comes back in time finds no gap. In the order in which they go.
    departed: VecDeque<(Matcher, Instant)>,
    time: Duration,
}

impl Kept {
    /// Nothing yet; what subscribers leave stays for so long.
    pub fn new(time: Duration) -> Self {
        Self {
            leases: Vec::new(),
            departed: VecDeque::new(),
            time,
        }
    }

    /// Keeps this as long as the lease is held.
    pub fn lease(&mut self, matcher: Matcher) -> Lease {
        let lease = Lease::default();
        self.leases.push((Arc::downgrade(&lease), matcher));
        lease
    }

    /// Whether a lease may be held.
    pub fn has_leases(&self) -> bool {
        !self.leases.is_empty()
    }

    /// Lets go what nobody holds a lease for any more. Returns whether there was some.
    pub fn drop_leases(&mut self) -> bool {
        let before = self.leases.len();
        self.leases.retain(|(lease, _)| lease.strong_count() > 0);
        self.leases.len() != before
    }

    /// Subscribers have left that asked for this.
    pub fn depart(&mut self, matchers: Vec<Matcher>, now: Instant) {
        let until = now + self.time;
        self.departed
            .extend(matchers.into_iter().map(|matcher| (matcher, until)));
    }

    /// When [`Self::drop_departed`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.departed.front().map(|(_, until)| *until)
    }

    /// Lets go what has been kept for long enough, or is too much. Returns whether there was some.
    pub fn drop_departed(&mut self, now: Instant) -> bool {
        let before = self.departed.len();
        self.departed.drain(..before.saturating_sub(MAX_DEPARTED));
        self.departed.retain(|(_, until)| *until > now);
        self.departed.len() != before
    }

    /// Whose connections are followed.
    pub fn matchers(&self) -> impl Iterator<Item = &Matcher> {
        let departed = self.departed.iter().map(|(matcher, _)| matcher);
        departed.chain(self.leases.iter().map(|(_, matcher)| matcher))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(60);

    fn matchers(n: usize) -> Vec<Matcher> {
        (0..n)
            .map(|_| Matcher::new(Vec::new(), Vec::new()))
            .collect()
    }

    #[test]
    fn what_is_left_goes_in_time() {
        let now = Instant::now();
        let mut kept = Kept::new(KEEP);
        assert_eq!(kept.due(), None);
        kept.depart(matchers(1), now);
        kept.depart(matchers(1), now + KEEP / 2);
        assert_eq!(kept.due(), Some(now + KEEP));
        assert!(!kept.drop_departed(now));
        assert!(kept.drop_departed(now + KEEP));
        assert_eq!(kept.matchers().count(), 1);
        assert!(kept.drop_departed(now + KEEP * 2));
        assert_eq!(kept.matchers().count(), 0);
    }

    #[test]
    fn no_more_is_left_than_has_room() {
        let now = Instant::now();
        let mut kept = Kept::new(KEEP);
        kept.depart(matchers(MAX_DEPARTED), now);
        assert!(!kept.drop_departed(now));
        kept.depart(matchers(1), now);
        assert!(kept.drop_departed(now));
        assert_eq!(kept.matchers().count(), MAX_DEPARTED);
    }

    #[test]
    fn a_lease_is_kept_while_it_is_held() {
        let mut kept = Kept::new(KEEP);
        let lease = kept.lease(matchers(1).remove(0));
        assert!(kept.has_leases() && !kept.drop_leases());
        drop(lease);
        assert!(kept.drop_leases() && !kept.has_leases());
    }
}
