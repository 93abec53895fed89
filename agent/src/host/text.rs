//! Words and numbers that the table and JSON share, and what is not safe to print.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::event::{Comm, Event, Kind, Reason, Role, Source};

/// The event's name.
pub fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Connect => "connect",
        Kind::Accept => "accept",
        Kind::Close => "close",
        Kind::Failed => "failed",
        Kind::Existing => "existing",
    }
}

/// The reason's name.
pub fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Local => "local",
        Reason::Remote => "remote",
        Reason::ResetLocal => "reset-local",
        Reason::ResetRemote => "reset-remote",
        Reason::Timeout => "timeout",
        Reason::Abort => "abort",
        Reason::Unknown => "unknown",
    }
}

/// The side's name.
pub fn role(role: Role) -> &'static str {
    match role {
        Role::Client => "client",
        Role::Server => "server",
        Role::Unknown => "unknown",
    }
}

/// How the owner is known.
pub fn source(source: Source) -> &'static str {
    match source {
        Source::Connect => "connect",
        Source::Accept => "accept",
        Source::Listener => "listener",
        Source::Snapshot => "snapshot",
        Source::Closer => "closer",
        Source::Unknown => "unknown",
    }
}

/// The version of IP that the socket speaks to its user.
pub fn ip_version(event: &Event) -> u8 {
    if event.local.is_ipv4() { 4 } else { 6 }
}

/// An address as C's `inet_ntop` writes it. Rust differs for `::a.b.c.d` only.
pub fn address(ip: IpAddr) -> String {
    match ip {
        IpAddr::V6(v6) => v4_compatible(v6).map_or_else(|| v6.to_string(), |v4| format!("::{v4}")),
        IpAddr::V4(v4) => v4.to_string(),
    }
}

fn v4_compatible(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, high, _] if high != 0 => {
            let [.., a, b, c, d] = ip.octets();
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

/// A process' name, which it chose itself: nothing in it may move the cursor, reorder the line or
/// end it. Each such character becomes a `?`, also in a pipe, whose other end may be a terminal.
pub fn comm(comm: &Comm) -> String {
    String::from_utf8_lossy(comm.as_bytes())
        .chars()
        .map(|c| if is_unsafe(c) { '?' } else { c })
        .collect()
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' |
            '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn printed(name: &[u8]) -> String {
        let mut bytes = [0; 16];
        bytes[..name.len()].copy_from_slice(name);
        comm(&Comm::new(bytes))
    }

    #[test]
    fn a_name_cannot_reach_the_terminal() {
        assert_eq!(printed(b"nc"), "nc");
        assert_eq!(printed(b"a b"), "a b");
        assert_eq!(printed(b"\x1b[31mred\n"), "?[31mred?");
        assert_eq!(printed("a\u{202e}b\u{9b}".as_bytes()), "a?b?");
        assert_eq!(printed(b"bad\xff"), "bad\u{fffd}");
    }

    #[test]
    fn addresses_are_written_as_inet_ntop_does() {
        for text in [
            "127.0.0.1",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::1.2.3.4",
            "::12",
            "2001:db8::1:0:0:1",
            "fe80::1",
            "2001:db8:1111:2222:3333:4444:5555:6666",
        ] {
            let ip = text.parse().expect("an address");
            assert_eq!(address(ip), text);
        }
    }
}
