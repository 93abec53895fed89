//! Up to which cgroup the filter maps hold what is wanted, and what was lost of cgroups on the way.

use std::time::Instant;

use anyhow::Result;
use tcptracer::bpf::LostCgroups;

use super::programs::Programs;
use crate::identity::LINGER;

/// What the programs have been told of cgroups. They let the events of later cgroups pass.
#[derive(Debug)]
pub struct Decisions {
    /// The newest cgroup that the index knows. `None`: the programs do not know the cgroups that are reported.
    newest: Option<u64>,
    /// The newest cgroup that the programs were told of.
    told: Option<u64>,
    /// How many new cgroups had been lost before the last scan whose findings the maps hold.
    healed: LostCgroups,
    /// When a loss was last noticed.
    lost: Option<Instant>,
}

impl Decisions {
    /// `newest`: the last cgroup that the first scan has found for sure.
    pub fn new(newest: Option<u64>) -> Self {
        Self {
            newest,
            told: None,
            healed: LostCgroups::default(),
            lost: None,
        }
    }

    /// The index knows a new cgroup.
    pub fn made(&mut self, id: u64) {
        self.newest = self.newest.map(|newest| newest.max(id));
    }

    /// Whether new cgroups have been lost that no scan has looked for.
    pub fn lacks_cgroups(&self, programs: &dyn Programs) -> bool {
        programs.has_lost(self.healed).unwrap_or(true)
    }

    /// Cgroups have been lost.
    pub fn lost(&mut self, now: Instant) {
        self.lost = Some(now);
    }

    /// Whether events may still come of a cgroup that was lost, and gone before a scan could find it.
    pub fn may_lack_names(&self) -> bool {
        self.lost.is_some_and(|at| at.elapsed() < LINGER)
    }

    /// The maps hold what is wanted of those that a scan has found. So many had been lost before it.
    pub fn heal(&mut self, programs: &dyn Programs, lost: LostCgroups) -> Result<()> {
        self.healed = lost;
        programs.heal(lost)
    }

    /// The maps hold what is wanted of all cgroups that the index knows.
    pub fn tell(&mut self, programs: &dyn Programs) -> Result<()> {
        let Some(newest) = self.newest.filter(|_| self.newest != self.told) else {
            return Ok(());
        };
        let is_first = self.told.is_none();
        self.told = self.newest;
        programs.decide(newest)?;
        // Until now all cgroups were decided, also those that the maps lack.
        match is_first {
            true => programs.changed(),
            false => Ok(()),
        }
    }
}
