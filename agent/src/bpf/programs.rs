//! The loaded programs as the kernel accounts for them.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use libbpf_rs::{Link, ProgramMut};

use super::skel::TcptracerSkel;

/// The hook that is attached later than the others.
const IO_URING: &str = "tp/io_uring/io_uring_complete";

/// A loaded program. Holding it keeps the program loaded.
#[derive(Debug)]
pub struct Program {
    /// The hook it is for.
    pub hook: &'static str,
    /// Whether it could be attached, or why not; nothing before it was tried.
    attached: OnceLock<Result<(), String>>,
    fd: OwnedFd,
}

impl Program {
    fn new(hook: &'static str, program: &ProgramMut<'_>) -> Result<Self> {
        Ok(Self {
            hook,
            attached: OnceLock::new(),
            fd: program
                .as_fd()
                .try_clone_to_owned()
                .context("cannot keep a program")?,
        })
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
        let path = format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd());
        let info = fs::read_to_string(path).unwrap_or_default();
        counters.map(|counter| {
            info.lines()
                .find_map(|line| line.strip_prefix(counter)?.trim().parse().ok())
                .unwrap_or(0)
        })
    }
}

/// The programs that are loaded to stay, without the second copies: what those skip, the first has seen. All but one
/// have been attached.
pub fn loaded(skel: &TcptracerSkel<'_>) -> Result<Arc<[Program]>> {
    let progs = &skel.progs;
    [
        ("tp_btf/inet_sock_set_state", &progs.tt_set_state),
        ("tp_btf/tcp_destroy_sock", &progs.tt_destroy_sock),
        ("tp_btf/tcp_receive_reset", &progs.tt_receive_reset),
        ("tp/syscalls/sys_exit_accept", &progs.tt_exit_accept),
        ("tp/syscalls/sys_exit_accept4", &progs.tt_exit_accept4),
        ("fexit/inet_csk_accept", &progs.tt_inet_csk_accept),
        (IO_URING, &progs.tt_io_uring_complete),
        ("tp/syscalls/sys_enter_connect", &progs.tt_enter_connect),
        ("tp/syscalls/sys_exit_connect", &progs.tt_exit_connect),
        ("tp_btf/cgroup_mkdir", &progs.tt_cgroup_mkdir),
        ("tp_btf/cgroup_rmdir", &progs.tt_cgroup_rmdir),
    ]
    .into_iter()
    .filter(|(_, program)| program.autoload())
    .map(|(hook, program)| {
        let program = Program::new(hook, program)?;
        if hook != IO_URING {
            let _ = program.attached.set(Ok(()));
        }
        Ok(program)
    })
    .collect()
}

/// It has been tried to attach the hook that is attached once it is needed.
pub fn tried_io_uring(programs: &[Program], outcome: &libbpf_rs::Result<Link>) {
    for program in programs.iter().filter(|p| p.hook == IO_URING) {
        let outcome = outcome.as_ref().map(|_| ()).map_err(ToString::to_string);
        let _ = program.attached.set(outcome);
    }
}
