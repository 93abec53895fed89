//! Waiting, with a deadline.

use std::thread;
use std::time::{Duration, Instant};

/// Nothing that is waited for takes this long unless it is broken, however busy the machine is.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Asks until the answer is yes.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
