//! The channel over which an actor is told what to do: lines, and a socket behind one of them.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::DEADLINE;

/// Our end, at which an answer is waited for no longer than anything may take, and the stdin of an actor.
pub fn channel() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, its) = UnixStream::pair()?;
    ours.set_read_timeout(Some(DEADLINE))?;
    Ok((ours, its.into()))
}

/// Unbuffered, since a socket may follow the line.
pub fn read_line(mut from: &UnixStream) -> Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        ensure!(
            from.read(&mut byte).context("no answer")? == 1,
            "it is gone"
        );
        if byte[0] == b'\n' {
            return Ok(String::from_utf8(line)?);
        }
        line.push(byte[0]);
    }
}

pub fn send(control: &UnixStream, socket: impl AsFd) -> Result<()> {
    let fds = [socket.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ensure!(
        ancillary.push(SendAncillaryMessage::ScmRights(&fds)),
        "no room for a descriptor"
    );
    sendmsg(
        control,
        &[IoSlice::new(b"!")],
        &mut ancillary,
        SendFlags::empty(),
    )?;
    Ok(())
}

pub fn receive(control: &UnixStream) -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(
        control,
        &mut [IoSliceMut::new(&mut [0])],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            return fds.next().context("no descriptor");
        }
    }
    bail!("no descriptor")
}
