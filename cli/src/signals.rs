//! When a watch ends.

use std::future::pending;
use std::io;
use std::process;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// A signal so soon after the end is the one that ended it: `timeout` sends each twice.
const SAME: Duration = Duration::from_millis(100);

/// Is cancelled when the user ends it, or the time is over. The next signal then ends the process at once. Signals count
/// from here on, not only once somebody waits.
pub fn end(after: Option<Duration>) -> Result<CancellationToken> {
    let mut signals = Signals::new().context("cannot handle signals")?;
    let over = async move {
        match after {
            Some(time) => sleep(time).await,
            None => pending().await,
        }
    };
    let end = CancellationToken::new();
    let ending = end.clone();
    // On its own: who writes the rows may be stuck, for nobody reads them.
    tokio::spawn(async move {
        tokio::select! {
            () = over => {}
            _ = signals.next() => {}
        }
        ending.cancel();
        let ended = Instant::now();
        loop {
            let code = signals.next().await;
            if ended.elapsed() > SAME {
                process::exit(code);
            }
        }
    });
    Ok(end)
}

/// What the user ends a program by.
#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next; returns the exit code of a program that it ends.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => 128 + 2,
            _ = self.terminate.recv() => 128 + 15,
        }
    }
}

/// The same.
#[cfg(windows)]
struct Signals(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Signals {
    fn new() -> io::Result<Self> {
        tokio::signal::windows::ctrl_c().map(Self)
    }

    async fn next(&mut self) -> i32 {
        self.0.recv().await;
        128 + 2
    }
}
