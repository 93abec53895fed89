/*!
What the tests that need root stand on: places of their own, processes to trace, the programs under test and their formats,
and the way such tests are run.

Whatever a value here has made is gone with it, also if a test fails.
*/

// It is for tests only: names say it, and what makes something new says so.
#![allow(missing_docs, clippy::new_without_default)]

mod actor;
pub mod check;
pub mod lines;
mod pins;
pub mod places;
mod programs;
mod rows;
mod run;
mod tool;
mod wait;
mod world;

pub use actor::{ACTOR, Actor, act, channel, knows_mptcp, knows_multishot};
pub use pins::{Pin, assert_no_pins, is_there, own_pins};
pub use places::{Cgroup, Netns, aside, cover, mount_points, own_mounts, this_thread, v2_mount};
pub use programs::attached_programs;
pub use rows::{BANNER, End, assert_same, header, header_of};
pub use run::{Test, absent, run, run_with_optional};
pub use tool::{Tool, ids_of, program, stats};
pub use wait::{DEADLINE, wait_until};
pub use world::World;
