//! When connections are looked for that were open before their container was selected. Pure.

use std::time::{Duration, Instant};

/// A look goes through the files of all processes. Those that nobody waits for take this part of the time.
const SHARE: u32 = 10;

/// After a look that has failed, until the next one that nobody waits for.
const RETRY: Duration = Duration::from_secs(10);

/// How far what is open is followed of whom the filter maps select.
#[derive(Debug, Default)]
pub struct Seeding {
    /// How often the maps have got entries.
    grown: u64,
    /// As of so many of these, what was open is followed.
    seeded: u64,
    /// As of how many it will be, once a look under way is over, or once the hooks are attached that were asked for.
    looking: Option<u64>,
    attaching: u64,
    /// When the last look began, and how long to wait after that if nobody waits for the next one.
    last: Option<(Instant, Duration)>,
}

impl Seeding {
    /// The maps get entries.
    pub fn grow(&mut self) {
        self.grown += 1;
    }

    /// How often they have got some. Once [`Self::has`] this many, what is open now is followed.
    pub fn grown(&self) -> u64 {
        self.grown
    }

    /// Whether what was open by then is followed.
    pub fn has(&self, growths: u64) -> bool {
        self.seeded >= growths
    }

    /// When to look next, with the hooks attached. `waiting`: somebody waits for it.
    pub fn due(&self, waiting: bool) -> Option<Instant> {
        let (began, interval) = self.last?;
        self.is_open().then(|| match waiting {
            true => began,
            false => began + interval,
        })
    }

    /// Whether to look now, with the hooks attached.
    pub fn is_due(&self, waiting: bool, now: Instant) -> bool {
        self.is_open() && self.due(waiting).is_none_or(|due| due <= now)
    }

    /// A look is needed, and none is under way.
    fn is_open(&self) -> bool {
        self.looking.is_none() && !self.has(self.grown)
    }

    /// A look begins.
    pub fn begin(&mut self, now: Instant) {
        self.looking = Some(self.grown);
        self.last = Some((now, Duration::ZERO));
    }

    /// It is over. What has failed is due again.
    pub fn end(&mut self, done: bool, now: Instant) {
        let looked = self.looking.take().filter(|_| done);
        self.seeded = self.seeded.max(looked.unwrap_or_default());
        let wait = |began| match done {
            true => SHARE * (now - began),
            false => RETRY,
        };
        self.last = self.last.map(|(began, _)| (began, wait(began)));
    }

    /// Hooks are asked for. To attach them includes a look.
    pub fn attach(&mut self) {
        self.attaching = self.grown;
    }

    /// They are attached.
    pub fn attached(&mut self) {
        self.seeded = self.seeded.max(self.attaching);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_growth_is_looked_after_once() {
        let start = Instant::now();
        let mut seeding = Seeding::default();
        assert!(!seeding.is_due(true, start) && seeding.has(0));
        seeding.grow();
        assert!(seeding.is_due(false, start));
        seeding.begin(start);
        // Meanwhile it grows again.
        seeding.grow();
        assert!(!seeding.is_due(true, start));
        let now = start + Duration::from_millis(3);
        seeding.end(true, now);
        assert!(seeding.has(1) && !seeding.has(seeding.grown()));
        assert!(seeding.is_due(true, now));
        let later = start + Duration::from_millis(30);
        assert_eq!(seeding.due(false), Some(later));
        assert!(!seeding.is_due(false, now) && seeding.is_due(false, later));
        seeding.begin(later);
        seeding.end(true, later);
        assert!(seeding.has(2));
        assert_eq!(seeding.due(true), None);
    }

    #[test]
    fn what_has_failed_is_due_again() {
        let start = Instant::now();
        let mut seeding = Seeding::default();
        seeding.grow();
        seeding.begin(start);
        seeding.end(false, start);
        assert!(!seeding.has(1) && !seeding.is_due(false, start));
        assert!(seeding.is_due(true, start) && seeding.is_due(false, start + RETRY));
    }

    #[test]
    fn to_attach_is_to_look() {
        let mut seeding = Seeding::default();
        seeding.grow();
        seeding.attach();
        seeding.grow();
        seeding.attached();
        assert!(seeding.has(1) && !seeding.has(2));
    }
}
