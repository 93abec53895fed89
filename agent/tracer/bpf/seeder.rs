//! Has connections followed that were open before somebody was selected.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use libbpf_rs::{Iter, Link};

use super::generation::Generation;
use super::load::read_all;

/// Looks for what is open. Clones are of the same. What is found is followed from then on, and not reported.
#[derive(Clone, Debug)]
pub struct Seeder {
    /// Of the iterator. The ring thread owns it, and takes it away while the hooks are not attached; who looks locks it only to
    /// begin.
    iterator: Arc<Mutex<Option<Link>>>,
    generation: Generation,
}

impl Seeder {
    pub(super) fn new(generation: Generation) -> Self {
        Self {
            iterator: Arc::default(),
            generation,
        }
    }

    /// When it returns, what was open of whom the filter maps had selected when it was called is followed, unless the hooks are
    /// not attached: to attach them does the same. Walks the files of all processes.
    pub fn seed(&self) -> Result<()> {
        let growths = self.generation.growths();
        // The walk does not take the link.
        let Some(walk) = self.iterator().as_ref().map(Iter::new) else {
            return Ok(());
        };
        walk.and_then(|mut walk| Ok(read_all(&mut walk, &mut Vec::new())?))
            .context("cannot take the snapshot")?;
        self.generation.set_seeded(Some(growths))
    }

    /// The hooks are attached, and what was open as of so many growths is followed. Later ones take the iterator, if there is
    /// one: without it there is nothing that could be found.
    pub(super) fn start(&self, iterator: Option<Link>, growths: u64) -> Result<()> {
        *self.iterator() = iterator;
        self.generation.set_seeded(Some(growths))
    }

    /// The hooks are detached.
    pub(super) fn stop(&self) {
        *self.iterator() = None;
        // An element of an array can always be written.
        let _ = self.generation.set_seeded(None);
    }

    /// As often have the filter maps grown.
    pub(super) fn growths(&self) -> u64 {
        self.generation.growths()
    }

    fn iterator(&self) -> MutexGuard<'_, Option<Link>> {
        self.iterator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
