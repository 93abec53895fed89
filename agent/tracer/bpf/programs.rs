//! The loaded programs as the kernel accounts for them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use libbpf_rs::ProgramMut;
use procfs::process::Process;

use super::config::Config;
use super::hooks::{Group, HOOKS, Place};
use super::plan::{Plan, When};
use super::skel::TcptracerSkel;

/// A loaded program. Holding it keeps the program loaded.
#[derive(Debug)]
pub struct Program {
    place: Place,
    /// When it is attached, as long as it is not.
    waits: &'static str,
    attached: AtomicBool,
    /// Why it could not be attached when it was needed.
    failed: OnceLock<String>,
    fd: OwnedFd,
}

impl Program {
    fn new(place: Place, waits: &'static str, program: &ProgramMut<'_>) -> Result<Self> {
        Ok(Self {
            place,
            waits,
            attached: AtomicBool::new(false),
            failed: OnceLock::new(),
            fd: program
                .as_fd()
                .try_clone_to_owned()
                .context("cannot keep a program")?,
        })
    }

    /// The name of its hook.
    pub fn hook(&self) -> &'static str {
        self.place.hook().name
    }

    /// Where it is attached.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Why it is not attached.
    pub fn why_not_attached(&self) -> Option<&str> {
        match self.attached.load(Ordering::Relaxed) {
            true => None,
            false => Some(self.failed.get().map_or(self.waits, String::as_str)),
        }
    }

    /// It has been attached or detached.
    pub(super) fn set_attached(&self, attached: bool) {
        self.attached.store(attached, Ordering::Relaxed);
    }

    /// It could not be attached, for this reason.
    pub(super) fn set_failed(&self, why: String) {
        // The first reason is as good as others.
        let _ = self.failed.set(why);
    }

    /// How often the kernel skipped it because it was running already. Older than 5.12 it does not say.
    pub fn skipped_runs(&self) -> u64 {
        let [skipped] = self.read(["recursion_misses:"]);
        skipped
    }

    /// How long it ran in all, and how often; counted while the sysctl `kernel.bpf_stats_enabled` is on.
    pub fn run_time(&self) -> (Duration, u64) {
        let [time, runs] = self.read(["run_time_ns:", "run_cnt:"]);
        (Duration::from_nanos(time), runs)
    }

    /// The kernel shows its counters with the program's descriptor; 0 for one that it does not.
    fn read<const N: usize>(&self, counters: [&str; N]) -> [u64; N] {
        let path = format!("fdinfo/{}", self.fd.as_raw_fd());
        let file = Process::myself().and_then(|this| this.open_relative(path));
        // procfs has no type for what the kernel writes there.
        let info = file.ok().and_then(|file| io::read_to_string(file).ok());
        let info = info.unwrap_or_default();
        counters.map(|counter| {
            info.lines()
                .find_map(|line| line.strip_prefix(counter)?.trim().parse().ok())
                .unwrap_or(0)
        })
    }
}

/// The programs that are loaded to be attached, without the second copies: what those skip, the first has seen. None is
/// attached yet.
pub fn loaded(skel: &TcptracerSkel<'_>, plan: &Plan, config: &Config) -> Result<Arc<[Program]>> {
    HOOKS
        .iter()
        .filter(|hook| hook.group != Group::SecondCopies)
        .filter_map(|hook| {
            let waits = match plan.when(hook.group, config) {
                When::Asked => "attached as long as somebody asks for what it sees",
                When::Needed => "attached once it is needed",
                When::Never | When::Run => return None,
            };
            Some(Program::new(hook.place, waits, (hook.loaded)(&skel.progs)))
        })
        .collect()
}
