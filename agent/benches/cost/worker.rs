//! A child process that runs this same binary, so that its CPU time is measured separately. It reads orders from standard input
//! and answers each of them; orders and answers are lines of JSON.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cpu::pin_to_cpu;

/// The process, seen from the bench. It ends when this is dropped.
pub struct Worker {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    clock: ClockId,
}

impl Worker {
    /// `binary` is this bench or another build of it, `role` the argument by which it knows what to be.
    pub fn spawn(binary: &OsStr, role: &str, cpu: usize) -> Result<Self> {
        let mut child = Command::new(binary)
            .args([role, &cpu.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", binary.display()))?;
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(child.id())?))?;
        let orders = child.stdin.take();
        let answers = child.stdout.take().context("no pipe")?;
        Ok(Self {
            child,
            orders,
            answers: BufReader::new(answers),
            clock,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time of all its threads.
    pub fn cpu(&self) -> Result<Duration> {
        Ok(clock_gettime(self.clock)?.into())
    }

    pub fn ask<A: DeserializeOwned>(&mut self, order: &impl Serialize) -> Result<A> {
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        let orders = self.orders.as_mut().context("the process is gone")?;
        orders
            .write_all(line.as_bytes())
            .context("the process died")?;
        line.clear();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).context("the process died")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}

/// What the process does first: it goes where it belongs, and with the bench.
pub fn settle(cpu: &str) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    pin_to_cpu(cpu.parse()?)
}

/// Obeys until the input ends.
pub fn serve<O: DeserializeOwned, A: Serialize>(mut obey: impl FnMut(O) -> A) -> Result<()> {
    for line in stdin().lines() {
        let answer = obey(serde_json::from_str(&line?)?);
        let mut out = stdout().lock();
        serde_json::to_writer(&mut out, &answer)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    Ok(())
}
