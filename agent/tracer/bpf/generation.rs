//! What the programs know of changes to the filter maps, where nobody but the owner of the tracer edits them.

use std::mem::{offset_of, size_of};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapMut};

use super::maps::clear;
use super::skel::types::tt_generation;

/// Of no growth.
const NEVER: u64 = u64::MAX;

const _: () = assert!(
    offset_of!(tt_generation, changes) == 0
        && offset_of!(tt_generation, growths) == 8
        && offset_of!(tt_generation, seeded) == 16
        && size_of::<tt_generation>() == 24
);

/// The programs remember verdicts under so many bits of the number of changes.
const BITS: u32 = 16;

/// Says to the programs that the filter maps change. Clones are of the same.
#[derive(Clone, Debug)]
pub struct Generation(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    map: MapHandle,
    verdicts: MapHandle,
    now: Mutex<tt_generation>,
}

impl Generation {
    pub(super) fn new(map: &MapMut<'_>, verdicts: &MapMut<'_>) -> Result<Self> {
        let keep =
            |map| MapHandle::try_from(map).context("cannot keep the generation of filter maps");
        Ok(Self(Arc::new(Inner {
            map: keep(map)?,
            verdicts: keep(verdicts)?,
            now: Mutex::default(),
        })))
    }

    /// The filter maps are about to get entries. What is open by then of whom these select ends uncounted until a
    /// [`Seeder`](super::Seeder) has been there.
    pub fn grow(&self) -> Result<()> {
        self.set(|now| now.growths += 1)
    }

    /// The filter maps have been changed: what was remembered of them holds no more.
    pub fn changed(&self) -> Result<()> {
        self.set(|now| now.changes += 1)
    }

    /// As often have they got entries.
    pub(super) fn growths(&self) -> u64 {
        self.now().growths
    }

    /// What was open is followed, as of so many growths, or nothing is.
    pub(super) fn set_seeded(&self, growths: Option<u64>) -> Result<()> {
        self.set(|now| now.seeded = growths.unwrap_or(NEVER))
    }

    fn now(&self) -> MutexGuard<'_, tt_generation> {
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, change: impl FnOnce(&mut tt_generation)) -> Result<()> {
        let why = "cannot say to the programs that the filter maps change";
        let mut now = self.now();
        let before = now.changes >> BITS;
        change(&mut now);
        if now.changes >> BITS != before {
            clear(&self.0.verdicts).context(why)?;
        }
        let words = [now.changes, now.growths, now.seeded].map(u64::to_ne_bytes);
        self.0
            .map
            .update(&0u32.to_ne_bytes(), words.as_flattened(), MapFlags::ANY)
            .context(why)
    }
}
