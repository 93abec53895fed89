//! The table of connections, read from outside while the programs work on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapMut};
use tcptracer_event::Event;

use super::wire;
use crate::clock::monotonic_now;

/// Entries, and sets of them, to read with one system call.
const BATCH: u32 = 1024;
const BATCH_OF_SETS: u32 = 256;

/// A view of the connections that the programs follow, whatever the filters let pass.
#[derive(Debug)]
pub struct Connections {
    sets: MapHandle,
    rest: MapHandle,
    /// The tracer's count of what could not be decoded.
    undecodable: Arc<AtomicU64>,
}

impl Connections {
    pub(super) fn new(
        sets: &MapMut<'_>,
        rest: &MapMut<'_>,
        undecodable: Arc<AtomicU64>,
    ) -> Result<Self> {
        let keep = |map| MapHandle::try_from(map).context("cannot keep the table of connections");
        Ok(Self {
            sets: keep(sets)?,
            rest: keep(rest)?,
            undecodable,
        })
    }

    /// Another view.
    pub fn try_clone(&self) -> Result<Self> {
        let keep = |map| MapHandle::try_from(map).context("cannot keep the table of connections");
        Ok(Self {
            sets: keep(&self.sets)?,
            rest: keep(&self.rest)?,
            undecodable: Arc::clone(&self.undecodable),
        })
    }

    /// Those that are established now, as events of kind [`tcptracer_event::Kind::Existing`] without
    /// counters. An entry that cannot be decoded is left out and counted. What comes and goes meanwhile may be among them or not.
    pub fn list(&self) -> Result<Vec<Event>> {
        let now = monotonic_now();
        let sets = read(&self.sets, BATCH_OF_SETS)?;
        let (mut events, bad) = wire::decode_sets(sets, now);
        let rest = read(&self.rest, BATCH)?;
        let (more, more_bad) = wire::decode_connections(rest, now);
        events.extend(more);
        self.undecodable
            .fetch_add(bad + more_bad, Ordering::Relaxed);
        Ok(events)
    }
}

fn read(map: &MapHandle, batch: u32) -> Result<impl Iterator<Item = Vec<u8>>> {
    let entries = map
        .lookup_batch(batch, MapFlags::ANY, MapFlags::ANY)
        .context("cannot read the table of connections")?;
    Ok(entries.map(|(_, entry)| entry))
}
