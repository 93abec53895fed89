//! The peer: `tcplife` of libbpf-tools, which prints a line for each end of a connection.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::cpu::pin_to_cpu;
use crate::load::Load;
use crate::tied::{self, Tied};

/// How long it may take to attach.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where it is, in the path or where Debian puts it.
pub fn find() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|dir| dir.join("tcplife"))
        .find(|file| file.is_file())
        .context("there is no tcplife to compare with: apt-get install libbpf-tools")
}

/// A running tcplife.
pub struct Tcplife {
    process: Tied,
    port: Arc<AtomicU16>,
    seen: Arc<AtomicU64>,
    counted: JoinHandle<u64>,
    lost: JoinHandle<u64>,
}

impl Tcplife {
    /// Returns once it is attached, and from then on counts the connections to a new port.
    pub fn start(program: &Path, cpu: usize, load: &mut Load) -> Result<Self> {
        let mut process = Tied::start(
            tied::command(program, cpu)?
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        )?;
        let out = process.child.stdout.take().context("no pipe")?;
        let err = process.child.stderr.take().context("no pipe")?;
        let port = Arc::new(AtomicU16::new(0));
        let seen = Arc::new(AtomicU64::new(0));
        let mut tcplife = Self {
            process,
            counted: count_lines(out, cpu, Arc::clone(&port), Arc::clone(&seen)),
            lost: thread::spawn(move || sum_losses(err)),
            port,
            seen,
        };
        tcplife.wait_until_attached(load)?;
        tcplife.port.store(load.change_port()?, Ordering::Relaxed);
        Ok(tcplife)
    }

    /// It says nothing when it is ready and fills a buffer before it writes, so feed it.
    fn wait_until_attached(&mut self, load: &mut Load) -> Result<()> {
        let begin = Instant::now();

        while self.seen.load(Ordering::Relaxed) == 0 {
            if let Some(status) = self.process.child.try_wait()? {
                bail!("tcplife ended: {status}");
            }
            if begin.elapsed() > PATIENCE {
                bail!("tcplife prints nothing");
            }
            load.run(Duration::from_millis(3))?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub fn cpu(&self) -> Result<Duration> {
        self.process.cpu()
    }

    /// Returns the lines it printed for the port, and how many events it says were lost.
    pub fn stop(mut self) -> Result<(u64, u64)> {
        self.process.end_by(Signal::SIGINT)?;
        let joined = |handle: JoinHandle<u64>| handle.join().unwrap_or(0);
        Ok((joined(self.counted), joined(self.lost)))
    }
}

fn count_lines(
    out: impl Read + Send + 'static,
    cpu: usize,
    port: Arc<AtomicU16>,
    seen: Arc<AtomicU64>,
) -> JoinHandle<u64> {
    thread::spawn(move || {
        let mut count = 0;
        // Wherever it runs the lines have to be read.
        let _ = pin_to_cpu(cpu);
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let Some(ports) = ports(&line) else {
                continue;
            };
            seen.fetch_add(1, Ordering::Relaxed);
            count += u64::from(ports.contains(&port.load(Ordering::Relaxed)));
        }
        count
    })
}

/// PID COMM LADDR LPORT RADDR RPORT TX_KB RX_KB MS; only COMM may have spaces in it.
fn ports(line: &str) -> Option<[u16; 2]> {
    let mut backwards = line.split_ascii_whitespace().rev().skip(3);
    let remote = backwards.next()?.parse().ok()?;
    let local = backwards.nth(1)?.parse().ok()?;
    Some([local, remote])
}

/// From lines like `lost 12 events on CPU #0`.
fn sum_losses(err: impl Read) -> u64 {
    let lines = BufReader::new(err).lines().map_while(Result::ok);
    lines
        .filter(|line| line.contains("ost "))
        .filter_map(|line| line.split(' ').find_map(|word| word.parse::<u64>().ok()))
        .sum()
}
