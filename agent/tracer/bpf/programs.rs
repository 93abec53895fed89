//! The loaded programs as the kernel accounts for them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use libbpf_rs::{Link, ProgramMut};
use procfs::process::Process;

use super::config::Config;
use super::hooks::{Group, HOOKS, Hook, Place};
use super::plan::{Plan, When};
use super::skel::TcptracerSkel;

/// A loaded program. Holding it keeps the program loaded.
#[derive(Debug)]
pub struct Program {
    place: Place,
    /// Whether it could be attached, or why not; nothing before it was tried.
    attached: OnceLock<Result<(), String>>,
    fd: OwnedFd,
}

impl Program {
    fn new(place: Place, program: &ProgramMut<'_>) -> Result<Self> {
        Ok(Self {
            place,
            attached: OnceLock::new(),
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

    /// Why it is not attached.
    pub fn why_not_attached(&self) -> Option<&str> {
        match self.attached.get() {
            None => Some("attached once it is needed"),
            Some(Ok(())) => None,
            Some(Err(why)) => Some(why),
        }
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

/// The programs that are loaded to stay, without the second copies: what those skip, the first has seen. Those that the
/// plan has attached at the start have been attached.
pub fn loaded(skel: &TcptracerSkel<'_>, plan: &Plan, config: &Config) -> Result<Arc<[Program]>> {
    let when = |group| plan.when(group, config);
    HOOKS
        .iter()
        .filter(|hook| hook.group != Group::SecondCopies)
        .filter(|hook| matches!(when(hook.group), When::Start | When::Needed))
        .map(|hook| {
            let program = Program::new(hook.place, (hook.loaded)(&skel.progs))?;
            if when(hook.group) == When::Start {
                let _ = program.attached.set(Ok(()));
            }
            Ok(program)
        })
        .collect()
}

/// Attaches a group that is attached once it is needed.
pub fn attach_now(
    skel: &TcptracerSkel<'_>,
    programs: &[Program],
    group: Group,
) -> libbpf_rs::Result<Vec<Link>> {
    let attach = |hook: &Hook| {
        let link = (hook.loaded)(&skel.progs).attach();
        for program in programs.iter().filter(|p| p.place == hook.place) {
            let outcome = link.as_ref().map(|_| ()).map_err(ToString::to_string);
            let _ = program.attached.set(outcome);
        }
        link
    };
    group.hooks().map(attach).collect()
}
