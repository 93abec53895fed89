//! What the programs are told of the maps by which they filter.

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

    /// How many new cgroups have been lost. Asked before a scan.
    fn lost_cgroups(&self) -> Result<LostCgroups>;

    /// The maps hold what is wanted of those as well.
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

    fn lost_cgroups(&self) -> Result<LostCgroups> {
        self.lost_cgroups()
    }

    fn heal(&self, lost: LostCgroups) -> Result<()> {
        self.heal(lost)
    }
}
