//! What the tests stand on: places of their own, processes to trace, the tool, and its format.

mod actor;
pub mod lines;
mod pins;
pub mod places;
mod rows;
mod tool;

pub use actor::{ACTOR, Actor, HOLDER, World, act, hold};
pub use pins::{Pin, is_there};
pub use places::{Cgroup, Netns, cover, mount_points, own_mounts};
pub use rows::{BANNER, End, assert_same, header, header_of};
pub use tool::{Tool, stats};

use std::thread;
use std::time::{Duration, Instant};

/// Nothing that is waited for takes this long unless it is broken.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Asks until the answer is yes.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
