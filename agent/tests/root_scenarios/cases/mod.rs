//! The scenarios, by theme.

mod accepts;
mod cgroups;
mod ends;
mod filters;
mod identity;
mod io_uring;
mod lifecycle;
mod load;
mod lossy;
mod odd;
mod pauses;
mod polled;
mod snapshot;
mod strangers;

use tcptracer_testing::Test;

/// The name of a scenario is enough.
pub const ALL: &[(&str, &[Test])] = &[
    ("", lifecycle::CASES),
    ("", ends::CASES),
    ("", identity::CASES),
    ("", accepts::CASES),
    ("", odd::CASES),
    ("", polled::CASES),
    ("", strangers::CASES),
    ("", snapshot::CASES),
    ("", pauses::CASES),
    ("", io_uring::CASES),
    ("", filters::CASES),
    ("", cgroups::CASES),
    ("", load::CASES),
];

/// Those that need what not every kernel has.
pub const OPTIONAL: &[(&str, &[Test])] = &[("", lossy::CASES)];
