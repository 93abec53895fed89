//! What the agent tells the kernel's programs about their filter maps.

use anyhow::Result;
use tcptracer::bpf::{Generation, LostCgroups};

/// The programs, or who stands for them in a test.
pub trait Programs: Send {
    /// The maps are about to get entries.
    fn grow(&self) -> Result<()>;

    /// The maps have been changed.
    fn changed(&self) -> Result<()>;

    /// The maps hold what is wanted of the cgroups up to this one: later ones pass.
    fn decide(&self, last: u64) -> Result<()>;

    /// A scan begins. How many new cgroups have been lost.
    fn begin_look(&self) -> Result<LostCgroups>;

    /// Whether new cgroups have been lost since then.
    fn has_lost(&self, then: LostCgroups) -> Result<bool>;

    /// The maps hold what is wanted of those that this scan has found.
    fn heal(&self, lost: LostCgroups) -> Result<()>;
}

impl Programs for Generation {
    fn grow(&self) -> Result<()> {
        self.grow()
    }

    fn changed(&self) -> Result<()> {
        self.changed()
    }

    fn decide(&self, last: u64) -> Result<()> {
        self.decide(last)
    }

    fn begin_look(&self) -> Result<LostCgroups> {
        self.begin_look()
    }

    fn has_lost(&self, then: LostCgroups) -> Result<bool> {
        self.has_lost(then)
    }

    fn heal(&self, lost: LostCgroups) -> Result<()> {
        self.heal(lost)
    }
}
