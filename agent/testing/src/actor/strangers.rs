//! Sockets that are no TCP sockets, and have numbers in common with them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use anyhow::Result;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketType, connect, netlink, socket};
use socket2::{Domain, Socket, Type};

/// The protocols of raw sockets that are the numbers of TCP and MPTCP.
const RAW: [i32; 2] = [6, 262];

/// Holds what it makes open.
pub struct Strangers {
    _netlink: Option<OwnedFd>,
    raw: Vec<Socket>,
}

impl Strangers {
    /// A netlink socket of protocol 6 that is connected, whose state has the number of ESTABLISHED; and raw sockets of
    /// TCP's and, where the kernel has it, MPTCP's protocol, connected to loopback.
    pub fn new() -> Result<Self> {
        let netlink = match socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::XFRM)) {
            // It is a module that may not be there.
            Err(Errno::PROTONOSUPPORT) => None,
            netlink => Some(netlink?),
        };
        if let Some(netlink) = &netlink {
            connect(netlink, &SocketAddrNetlink::new(0, 0))?;
        }
        let mut raw = Vec::new();
        for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            let address = SocketAddr::new(ip, 0);
            for protocol in RAW {
                match Socket::new(
                    Domain::for_address(address),
                    Type::RAW,
                    Some(protocol.into()),
                ) {
                    // Older kernels end before MPTCP's.
                    Err(e) if e.raw_os_error() == Some(nix::libc::EINVAL) && protocol > 255 => {}
                    socket => {
                        let socket = socket?;
                        socket.connect(&address.into())?;
                        raw.push(socket);
                    }
                }
            }
        }
        Ok(Self {
            _netlink: netlink,
            raw,
        })
    }

    /// Has the raw sockets connect where there is no way to; says how many there are.
    pub fn connect_to_nowhere(&self) -> Result<usize> {
        let nowhere = [
            SocketAddr::from((Ipv4Addr::new(203, 0, 113, 7), 80)),
            SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7), 80)),
        ];
        for socket in &self.raw {
            let v4 = socket.local_addr()?.is_ipv4();
            let to = nowhere[usize::from(!v4)];
            match socket.connect(&to.into()) {
                Err(e) if e.raw_os_error() == Some(Errno::NETUNREACH.raw_os_error()) => {}
                other => anyhow::bail!("a raw socket's connect to {to}: {other:?}"),
            }
        }
        Ok(self.raw.len())
    }
}
