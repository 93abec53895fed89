//! Processes that a test has made.

use std::process::Child;

use procfs::ProcResult;
use procfs::process::Syscall;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// The first argument of an actor.
pub const ACTOR: &str = "actor";

/// Whether a thread sleeps in this system call; one that sleeps elsewhere procfs cannot read.
pub fn sleeps_in(now: ProcResult<Syscall>, call: i64) -> bool {
    matches!(now, Ok(Syscall::Blocked { syscall_number, .. }) if syscall_number == call)
}

/// A child of this process, one that it adopted as well. Killed and reaped on drop.
pub struct Process {
    pid: Pid,
    has_ended: bool,
}

impl Process {
    pub fn new(pid: u32) -> Self {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        Self {
            pid: pid.expect("a pid"),
            has_ended: false,
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    pub fn kill(&mut self) {
        if !self.has_ended {
            let _ = kill_process(self.pid, Signal::KILL);
            self.wait();
        }
    }

    /// Until it ends.
    pub fn wait(&mut self) {
        if !self.has_ended {
            let _ = waitpid(Some(self.pid), WaitOptions::empty());
            self.has_ended = true;
        }
    }
}

impl From<Child> for Process {
    fn from(child: Child) -> Self {
        Self::new(child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
