//! Another program that is tied to the bench: it runs on the CPU of the tools, and is killed when the bench ends.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use procfs::process::Process;

use crate::worker::settle;

/// The argument that makes this binary another program.
pub const ROLE: &str = "--become";

/// Executes the command on that CPU. Returns if it cannot.
pub fn become_tied(cpu: &str, command: &[OsString]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no command")?;
    settle(cpu)?;
    Err(Command::new(program).args(arguments).exec().into())
}

/// The command that runs a program so. It has to be started by a thread that lives as long as the bench.
pub fn command(program: &Path, cpu: usize) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([ROLE, &cpu.to_string()]).arg(program);
    Ok(command)
}

/// A running one. Killed on drop.
pub struct Tied {
    pub child: Child,
    pid: Pid,
    clock: ClockId,
}

impl Tied {
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command.spawn()?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        Ok(Self {
            child,
            pid,
            clock: clock_getcpuclockid(pid)?,
        })
    }

    /// CPU time of all its threads.
    pub fn cpu(&self) -> Result<Duration> {
        Ok(clock_gettime(self.clock)?.into())
    }

    /// Memory that it holds, in MiB.
    pub fn rss(&self) -> Result<f64> {
        let status = Process::new(self.pid.as_raw())?.status()?;
        let kib = status.vmrss.context("it has ended")?;
        Ok(kib as f64 / 1024.0)
    }

    /// Asks it to end, and waits until it has.
    pub fn end_by(&mut self, signal: Signal) -> Result<ExitStatus> {
        kill(self.pid, signal)?;
        Ok(self.child.wait()?)
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
