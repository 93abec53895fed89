//! The table of connections, read from outside while the programs work on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapMut};
use tcptracer_event::Event;

use super::wire;
use crate::clock::monotonic_now;

/// Entries to read with one system call.
const BATCH: u32 = 1024;

/// A view of the connections that the programs follow, whatever the filters let pass.
#[derive(Debug)]
pub struct Connections {
    table: MapHandle,
    /// The tracer's count of what could not be decoded.
    undecodable: Arc<AtomicU64>,
}

impl Connections {
    pub(super) fn new(map: &MapMut<'_>, undecodable: Arc<AtomicU64>) -> Result<Self> {
        let table = MapHandle::try_from(map).context("cannot keep the table of connections")?;
        Ok(Self { table, undecodable })
    }

    /// Another view.
    pub fn try_clone(&self) -> Result<Self> {
        let table =
            MapHandle::try_from(&self.table).context("cannot keep the table of connections")?;
        Ok(Self {
            table,
            undecodable: Arc::clone(&self.undecodable),
        })
    }

    /// Those that are established now, as events of kind [`tcptracer_event::Kind::Existing`] without
    /// counters. An entry that cannot be decoded is left out and counted. What comes and goes meanwhile may be among them or not.
    pub fn list(&self) -> Result<Vec<Event>> {
        let now = monotonic_now();
        let entries = self
            .table
            .lookup_batch(BATCH, MapFlags::ANY, MapFlags::ANY)
            .context("cannot read the table of connections")?;
        let (events, bad) = wire::decode_connections(entries.map(|(_, entry)| entry), now);
        self.undecodable.fetch_add(bad, Ordering::Relaxed);
        Ok(events)
    }
}
