//! What goes over a connection, counted on its way.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result};

use crate::cpu::pin_to_cpu;

/// Room for what is passed on at once.
const ROOM: usize = 64 * 1024;

/// Passes on one connection. Its threads end with that, or with the bench.
pub struct Proxy {
    /// Where to connect to.
    pub address: SocketAddr,
    answered: Arc<AtomicU64>,
}

impl Proxy {
    pub fn to(server: &str, cpu: usize) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
        let address = listener.local_addr()?;
        let answered = Arc::new(AtomicU64::new(0));
        let (counted, server) = (Arc::clone(&answered), server.to_owned());
        thread::spawn(move || {
            // The count is the same wherever it runs.
            let _ = pin_to_cpu(cpu);
            // Who connects hears of what fails by the end of the connection.
            let _ = pass_on(&listener, &server, &counted);
        });
        Ok(Self { address, answered })
    }

    /// Bytes from the server to the client, up to now.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

fn pass_on(listener: &TcpListener, server: &str, answered: &AtomicU64) -> io::Result<()> {
    let (client, _) = listener.accept()?;
    let server = TcpStream::connect(server)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    thread::scope(|scope| {
        scope.spawn(|| copy(&client, &server, |_| ()));
        copy(&server, &client, |count| {
            answered.fetch_add(count as u64, Ordering::Relaxed);
        });
    });
    Ok(())
}

/// Until one of them closes, whereupon the other is closed as well.
fn copy(mut from: &TcpStream, mut to: &TcpStream, passed: impl Fn(usize)) {
    let mut room = vec![0; ROOM];
    while let Ok(count @ 1..) = from.read(&mut room) {
        if to.write_all(&room[..count]).is_err() {
            break;
        }
        passed(count);
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
