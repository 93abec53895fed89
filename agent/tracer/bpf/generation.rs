//! What the programs know of the filter maps, where nobody but the owner of the tracer edits them: that they have changed, and of
//! which cgroups it is decided whether they hold them.

use std::mem::{offset_of, size_of};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapMut};

use super::maps::clear;
use super::skel::types::{tt_generation, tt_made};

/// Of no growth.
const NEVER: u64 = u64::MAX;

/// No cgroup comes later.
const ALL: u64 = u64::MAX;

const _: () = assert!(
    offset_of!(tt_generation, changes) == 0
        && offset_of!(tt_generation, growths) == 8
        && offset_of!(tt_generation, seeded) == 16
        && offset_of!(tt_generation, decided) == 24
        && offset_of!(tt_generation, unsaid) == 32
        && offset_of!(tt_generation, healed) == 40
        && size_of::<tt_generation>() == 48
        && offset_of!(tt_made, first) == 0
        && offset_of!(tt_made, lost) == 8
        && size_of::<tt_made>() == 24
);

/// The programs remember verdicts under so many bits of the number of changes.
const BITS: u32 = 16;

/// Says to the programs what becomes of the filter maps. Clones are of the same.
#[derive(Clone, Debug)]
pub struct Generation(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    map: MapHandle,
    verdicts: MapHandle,
    made: MapHandle,
    now: Mutex<State>,
}

#[derive(Debug)]
struct State {
    said: tt_generation,
    /// How many cgroups the ring thread has lost, and the first of them since the last look began.
    unsaid: u64,
    since: u64,
}

/// How many new cgroups had been lost when a look at all of them began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LostCgroups {
    by_programs: u64,
    by_reader: u64,
}

impl Generation {
    pub(super) fn new(map: &MapMut<'_>, verdicts: &MapMut<'_>, made: &MapMut<'_>) -> Result<Self> {
        let keep =
            |map| MapHandle::try_from(map).context("cannot keep the generation of filter maps");
        // As the programs have it at first.
        let said = tt_generation {
            decided: ALL,
            ..tt_generation::default()
        };
        Ok(Self(Arc::new(Inner {
            map: keep(map)?,
            verdicts: keep(verdicts)?,
            made: keep(made)?,
            now: Mutex::new(State {
                said,
                unsaid: 0,
                since: 0,
            }),
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
        self.now().said.growths
    }

    /// What was open is followed, as of so many growths, or nothing is.
    pub(super) fn set_seeded(&self, growths: Option<u64>) -> Result<()> {
        self.set(|now| now.seeded = growths.unwrap_or(NEVER))
    }

    /// Of the cgroups that a look at all of them has found since the tracer started, where `newest` is the last: the last that is
    /// older than those whose coming the programs report.
    pub fn last_unreported(&self, newest: u64) -> Result<u64> {
        let [first, _] = self.made()?;
        Ok(match first {
            0 => newest,
            first => first - 1,
        })
    }

    /// The maps hold what they are to hold of the cgroups up to this one, but for those that were lost. The connections of later
    /// ones pass.
    pub fn decide(&self, last: u64) -> Result<()> {
        self.set(|now| now.decided = last)
    }

    /// A look at all cgroups begins. How many new ones have been lost.
    pub fn begin_look(&self) -> Result<LostCgroups> {
        let [_, by_programs] = self.made()?;
        let mut now = self.now();
        now.since = 0;
        Ok(LostCgroups {
            by_programs,
            by_reader: now.unsaid,
        })
    }

    /// Whether new cgroups have been lost since then.
    pub fn has_lost(&self, then: LostCgroups) -> Result<bool> {
        let [_, by_programs] = self.made()?;
        Ok((by_programs, self.now().unsaid) != (then.by_programs, then.by_reader))
    }

    /// The maps hold what they are to hold of the cgroups that this look has found.
    pub fn heal(&self, lost: LostCgroups) -> Result<()> {
        self.update(|state| {
            state.said.healed = lost.by_programs;
            // Those that have been lost since then.
            state.said.unsaid = state.since;
        })
    }

    /// The ring thread has lost a new cgroup.
    pub(super) fn lose(&self, id: u64) {
        // An element of an array can always be written.
        let _ = self.update(|state| {
            state.unsaid += 1;
            for first in [&mut state.said.unsaid, &mut state.since] {
                if *first == 0 {
                    *first = id;
                }
            }
        });
    }

    /// The first cgroup that the programs have reported or lost, or 0, and how many they have lost.
    fn made(&self) -> Result<[u64; 2]> {
        let value = self.0.made.lookup(&0u32.to_ne_bytes(), MapFlags::ANY);
        let value = value.context("cannot read which cgroups were made")?;
        let word = |at: usize| {
            let bytes = value.as_ref()?.get(at * 8..at * 8 + 8)?;
            Some(u64::from_ne_bytes(bytes.try_into().ok()?))
        };
        let words = word(0).zip(word(1));
        let (first, lost) = words.context("which cgroups were made is not there")?;
        Ok([first, lost])
    }

    fn now(&self) -> MutexGuard<'_, State> {
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, change: impl FnOnce(&mut tt_generation)) -> Result<()> {
        self.update(|state| change(&mut state.said))
    }

    fn update(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        let why = "cannot say to the programs that the filter maps change";
        let mut state = self.now();
        let before = state.said.changes >> BITS;
        change(&mut state);
        let now = state.said;
        if now.changes >> BITS != before {
            clear(&self.0.verdicts).context(why)?;
        }
        let words = [
            now.changes,
            now.growths,
            now.seeded,
            now.decided,
            now.unsaid,
            now.healed,
        ]
        .map(u64::to_ne_bytes);
        self.0
            .map
            .update(&0u32.to_ne_bytes(), words.as_flattened(), MapFlags::ANY)
            .context(why)
    }
}
