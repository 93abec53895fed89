//! How many system calls a process makes, counted by a BPF program.

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags};

use crate::programs::{Attached, attach_all, compile};

const SOURCE: &str = include_str!("syscalls.bpf.c");

/// Counts as long as this is there.
pub struct SystemCalls(Attached);

impl SystemCalls {
    pub fn new() -> Result<Self> {
        Ok(Self(attach_all(&compile(SOURCE)?)?))
    }

    /// Begins to count those of a process.
    pub fn watch(&self, pid: u32) -> Result<()> {
        let zero = 0_u64.to_ne_bytes();
        Ok(self
            .map()?
            .update(&pid.to_ne_bytes(), &zero, MapFlags::ANY)?)
    }

    /// Up to now.
    pub fn count(&self, pid: u32) -> Result<u64> {
        let counted = self.map()?.lookup(&pid.to_ne_bytes(), MapFlags::ANY)?;
        let bytes = counted.context("the process is not watched")?;
        Ok(u64::from_ne_bytes(
            bytes[..].try_into().context("no count")?,
        ))
    }

    fn map(&self) -> Result<impl MapCore + '_> {
        self.0.object.maps().next().context("there is no map")
    }
}
