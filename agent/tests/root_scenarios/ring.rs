//! Accepting through io_uring.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Result, ensure};
use io_uring::{IoUring, opcode, squeue, types};

/// A ring that only accepts.
pub struct Ring(IoUring);

impl Ring {
    /// With `sqpoll` a kernel thread submits.
    pub fn new(sqpoll: bool) -> Result<Self> {
        let mut builder = IoUring::builder();
        if sqpoll {
            builder.setup_sqpoll(1000);
        }
        Ok(Self(builder.build(8)?))
    }

    pub fn accept(&mut self, listener: &OwnedFd) -> Result<OwnedFd> {
        let entry = opcode::Accept::new(
            types::Fd(listener.as_raw_fd()),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        );
        self.push(&entry.build())?;
        self.next()
    }

    /// One submission, `count` connections.
    pub fn accept_many(&mut self, listener: &OwnedFd, count: usize) -> Result<Vec<OwnedFd>> {
        let entry = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd()));
        self.push(&entry.build())?;
        (0..count).map(|_| self.next()).collect()
    }

    #[allow(unsafe_code)]
    fn push(&mut self, entry: &squeue::Entry) -> Result<()> {
        // SAFETY: the entries made above point to no memory, and the listener is open.
        unsafe { self.0.submission().push(entry)? };
        self.0.submit()?;
        Ok(())
    }

    #[allow(unsafe_code)]
    fn next(&mut self) -> Result<OwnedFd> {
        loop {
            if let Some(done) = self.0.completion().next() {
                ensure!(done.result() >= 0, "accept: error {}", -done.result());
                // SAFETY: accept returned it, and nobody else knows it.
                return Ok(unsafe { OwnedFd::from_raw_fd(done.result()) });
            }
            self.0.submit_and_wait(1)?;
        }
    }
}
