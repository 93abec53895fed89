//! Starts, prints until there is a reason to stop, and stops.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGINT, SIGTERM};
use tcptracer_event::Losses;

use super::args::Args;
use super::output::{self, Output, say};
use crate::bpf::{Message, Tracer};

/// Events or connections were lost; stderr says how many.
const INCOMPLETE: u8 = 3;

/// Traces until a signal, the end of `--duration` or a closed pipe. The exit code says whether something was lost.
pub fn run(args: &Args) -> Result<ExitCode> {
    let signalled = signals().context("cannot handle signals")?;
    let (tracer, messages) = Tracer::start(args.config())?;
    for shortcoming in tracer.plan().shortcomings() {
        say(&shortcoming.to_string());
    }

    let limit = args.time_limit();
    let stopper = thread::Builder::new()
        .name("stopper".into())
        .spawn(move || {
            wait(&signalled, limit);
            tracer.stop()
        })
        .context("cannot start a thread")?;

    match print(args, &messages) {
        Ok(mut output) => {
            let lost: Losses = stopper
                .join()
                .map_err(|_| anyhow!("the thread that stops the tracer panicked"))?;
            // The queue may have had no room for the last report.
            output.report_losses(&lost);
            if args.stats {
                say(&output::stats(output.written(), &lost));
            }
            Ok(match lost.events() + lost.map_full {
                0 => ExitCode::SUCCESS,
                _ => ExitCode::from(INCOMPLETE),
            })
        }
        // The reader has seen enough. Everything we hold in the kernel goes with the process.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(e) => Err(e).context("cannot write"),
    }
}

/// Something to read from once SIGINT or SIGTERM came. The second one ends the process at once, in
/// case nobody reads our output any more.
fn signals() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    let again = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again))?;
        signal_hook::flag::register(signal, Arc::clone(&again))?;
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}

/// Returns when there is something to read or the limit is over.
fn wait(signalled: &UnixStream, limit: Option<Duration>) {
    let limit = limit.and_then(|l| Timespec::try_from(l).ok());
    let mut fds = [PollFd::new(signalled, PollFlags::IN)];
    while poll(&mut fds, limit.as_ref()) == Err(rustix::io::Errno::INTR) {}
}

/// Writes until the tracer is stopped. A line never waits in the buffer for the next event.
fn print(args: &Args, messages: &Receiver<Message>) -> io::Result<Output<impl Write + use<>>> {
    let mut output = Output::start(args, io::stdout().lock())?;
    loop {
        let message = match messages.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                output.flush()?;
                match messages.recv() {
                    Ok(message) => message,
                    Err(_) => break,
                }
            }
        };
        output.put(&message)?;
    }
    output.flush()?;
    Ok(output)
}
