//! Connections that go on while a test does something else.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

/// How often a load makes a connection: often enough that some open and close at any moment, and seldom enough
/// that nothing is lost.
const INTERVAL: Duration = Duration::from_millis(1);

/// A thread that makes connections with itself. It ends with the sender, and counts them.
pub struct Load {
    go_on: Sender<()>,
    thread: JoinHandle<io::Result<usize>>,
}

impl Load {
    /// Returns where it listens as well.
    pub fn start() -> Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (go_on, end) = mpsc::channel();
        let thread = thread::Builder::new().name("load".into()).spawn(move || {
            let mut count = 0;
            while end.try_recv() != Err(TryRecvError::Disconnected) {
                let _client = TcpStream::connect(address)?;
                let _server = listener.accept()?;
                count += 1;
                thread::sleep(INTERVAL);
            }
            Ok(count)
        })?;
        Ok((Self { go_on, thread }, address))
    }

    /// Returns how many connections it has made.
    pub fn stop(self) -> Result<usize> {
        drop(self.go_on);
        let count = self.thread.join().ok().context("the load panicked")?;
        Ok(count?)
    }
}
