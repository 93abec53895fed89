//! Connections that fail while other threads read the errors of their sockets all the time.
//!
//! Reading SO_ERROR clears the error, and needs no lock: a thread on another CPU may have it before the kernel has
//! finished ending the connection.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::DEADLINE;

/// Threads that poll: more than most machines on which this runs have CPUs, so that all are busy.
const POLLERS: usize = 3;

/// The kernel gives up what has been unanswered, or a window that has been closed, for so long.
const USER_TIMEOUT: Duration = Duration::from_millis(500);

/// Starts `count` connects, `at_a_time`, each from a socket of its own, and polls them until all have failed. Returns
/// how often each errno was read, such as `110=1000`.
pub fn connects(count: usize, at_a_time: usize, to: SocketAddr) -> Result<String> {
    let mut errors = Vec::new();
    while errors.len() < count {
        let sockets = (0..at_a_time.min(count - errors.len()))
            .map(|_| start(to))
            .collect::<io::Result<Vec<_>>>()?;
        errors.extend(poll(&sockets)?);
    }
    Ok(summary(&errors))
}

/// Connects so many sockets, sends on each until there is no more room, and polls them until all have failed. Returns
/// the same.
pub fn sends(count: usize, to: SocketAddr) -> Result<String> {
    const CHUNK: &[u8] = &[b'x'; 1 << 16];
    let sockets = (0..count)
        .map(|_| {
            let socket = new_socket(to)?;
            socket.connect(&to.into())?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect::<io::Result<Vec<_>>>()?;
    for mut socket in &sockets {
        while socket.write(CHUNK).is_ok() {}
    }
    Ok(summary(&poll(&sockets)?))
}

fn summary(errors: &[i32]) -> String {
    let mut counts = BTreeMap::new();
    for errno in errors {
        *counts.entry(errno).or_insert(0) += 1;
    }
    let counts: Vec<_> = counts.iter().map(|(e, n)| format!("{e}={n}")).collect();
    counts.join(" ")
}

fn new_socket(to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(socket)
}

fn start(to: SocketAddr) -> io::Result<Socket> {
    let socket = new_socket(to)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(e) if e.raw_os_error() == Some(nix::libc::EINPROGRESS) => Ok(socket),
        Err(e) => Err(e),
        Ok(()) => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

/// The error of each socket, in no order.
fn poll(sockets: &[Socket]) -> Result<Vec<i32>> {
    let deadline = Instant::now() + DEADLINE;
    let (found, errors) = mpsc::channel();
    let left = AtomicUsize::new(sockets.len());
    let poller = |found: Sender<i32>| -> Result<()> {
        while left.load(Ordering::Relaxed) > 0 {
            ensure!(Instant::now() < deadline, "not all within {DEADLINE:?}");
            for socket in sockets {
                if let Some(error) = socket.take_error()? {
                    left.fetch_sub(1, Ordering::Relaxed);
                    found.send(error.raw_os_error().unwrap_or(0))?;
                }
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let pollers: Vec<_> = (0..POLLERS)
            .map(|_| {
                let found = found.clone();
                scope.spawn(move || poller(found))
            })
            .collect();
        pollers
            .into_iter()
            .try_for_each(|p| p.join().map_err(|_| anyhow!("a poller panicked"))?)
    })?;
    drop(found);
    Ok(errors.iter().collect())
}
