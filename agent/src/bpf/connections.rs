//! The table of connections, read from outside while the programs work on it.

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapMut};

use super::wire;
use crate::clock::monotonic_now;
use crate::event::Event;

/// Entries to read with one system call.
const BATCH: u32 = 1024;

/// A view of the connections that the programs follow, whatever the filters let pass.
#[derive(Debug)]
pub struct Connections(MapHandle);

impl Connections {
    pub(super) fn new(map: &MapMut<'_>) -> Result<Self> {
        MapHandle::try_from(map)
            .map(Self)
            .context("cannot keep the table of connections")
    }

    /// Another view.
    pub fn try_clone(&self) -> Result<Self> {
        MapHandle::try_from(&self.0)
            .map(Self)
            .context("cannot keep the table of connections")
    }

    /// Those that are established now, as events of kind [`crate::event::Kind::Existing`] without
    /// counters. What comes and goes meanwhile may be among them or not.
    pub fn list(&self) -> Result<Vec<Event>> {
        let now = monotonic_now();
        let entries = self
            .0
            .lookup_batch(BATCH, MapFlags::ANY, MapFlags::ANY)
            .context("cannot read the table of connections")?;
        entries
            .filter_map(|(_, entry)| wire::decode_connection(&entry, now).transpose())
            .map(|event| event.context("the table of connections holds"))
            .collect()
    }
}
