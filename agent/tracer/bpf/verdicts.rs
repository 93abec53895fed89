//! What the programs remember of which cgroups pass the filter maps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapMut};

/// Has the programs ask the filter maps again. Clones are of the same.
#[derive(Clone, Debug)]
pub struct Verdicts {
    generation: Arc<MapHandle>,
    changes: Arc<AtomicU64>,
}

impl Verdicts {
    pub(super) fn new(generation: &MapMut<'_>) -> Result<Self> {
        let generation =
            MapHandle::try_from(generation).context("cannot keep the generation of filter maps")?;
        Ok(Self {
            generation: Arc::new(generation),
            changes: Arc::default(),
        })
    }

    /// The filter maps have been changed: what was remembered of them holds no more.
    pub fn forget(&self) -> Result<()> {
        let changes = self.changes.fetch_add(1, Ordering::SeqCst) + 1;
        self.generation
            .update(&0u32.to_ne_bytes(), &changes.to_ne_bytes(), MapFlags::ANY)
            .context("cannot have the programs ask the filter maps again")
    }
}
