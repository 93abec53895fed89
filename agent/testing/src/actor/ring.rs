//! Accepting and connecting through io_uring.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;

use anyhow::{Result, ensure};
use io_uring::{IoUring, opcode, squeue, types};
use nix::libc::{EINVAL, ENOTSOCK};
use socket2::{SockAddr, Socket};

/// A ring that accepts and connects.
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

    /// Fails with what the kernel answers.
    pub fn connect(&mut self, socket: &Socket, address: &SockAddr) -> Result<()> {
        let to = address.as_ptr().cast();
        let entry = opcode::Connect::new(types::Fd(socket.as_raw_fd()), to, address.len());
        self.push(&entry.build())?;
        match self.result()? {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error).into()),
        }
    }

    #[allow(unsafe_code)]
    fn push(&mut self, entry: &squeue::Entry) -> Result<()> {
        // SAFETY: the entries made above point to no memory, or to an address that is there until their result is; and the
        // socket is open.
        unsafe { self.0.submission().push(entry)? };
        self.0.submit()?;
        Ok(())
    }

    /// Of the next request that is done.
    fn result(&mut self) -> Result<i32> {
        loop {
            if let Some(done) = self.0.completion().next() {
                return Ok(done.result());
            }
            self.0.submit_and_wait(1)?;
        }
    }

    #[allow(unsafe_code)]
    fn next(&mut self) -> Result<OwnedFd> {
        let fd = self.result()?;
        ensure!(fd >= 0, "accept: error {}", -fd);
        // SAFETY: accept returned it, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Whether the kernel knows [`Ring::accept_many`] (5.19): then it minds that the file is no socket.
/// On a thread of its own, since the end of a ring interrupts system calls.
pub fn knows_multishot() -> bool {
    let probe = || {
        let (mut ring, file) = (Ring::new(false)?, File::open("/dev/null")?);
        ring.push(&opcode::AcceptMulti::new(types::Fd(file.as_raw_fd())).build())?;
        ring.result()
    };
    let result = thread::spawn(probe).join().expect("the thread ends well");
    match -result.expect("the ring answers") {
        ENOTSOCK => true,
        EINVAL => false,
        other => panic!("accept: error {other}"),
    }
}
