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
mod snapshot;

use anyhow::Result;

/// A scenario: its name and what it does.
pub type Case = (&'static str, fn() -> Result<()>);

/// Those that need what not every kernel has.
pub const OPTIONAL: &[Case] = lossy::CASES;

pub fn all() -> Vec<Case> {
    [
        lifecycle::CASES,
        ends::CASES,
        identity::CASES,
        accepts::CASES,
        odd::CASES,
        snapshot::CASES,
        io_uring::CASES,
        filters::CASES,
        cgroups::CASES,
        load::CASES,
    ]
    .concat()
}
