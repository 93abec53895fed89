//! The columns that tables of events share: those of bcc's tcptracer, and those about how a connection went.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::text::push_number;
use crate::{Kind, Reason, Record};

/// A column of a table of records.
pub struct Column<T> {
    /// Its header.
    pub name: &'static str,
    /// So many characters at least.
    pub width: usize,
    /// Appends what it says of a record; printable. A busy host has many, so a cell is no text of its own.
    pub cell: fn(&Record<'_, T>, &mut String),
}

/// What happened, as a letter or as a word.
pub const fn kind<T>(verbose: bool) -> Column<T> {
    match verbose {
        false => Column {
            name: "T",
            width: 2,
            cell: |record, to| to.push_str(record.kind.map_or("?", Kind::letter)),
        },
        true => Column {
            name: "TYPE",
            width: 12,
            cell: |record, to| to.push_str(record.kind.map_or("unknown", Kind::name)),
        },
    }
}

/// Which connection it is, and who acted.
pub const fn connection<T>() -> [Column<T>; 7] {
    [
        Column {
            name: "PID",
            width: 6,
            cell: |record, to| push_number(to, record.closer_pid.unwrap_or(record.pid)),
        },
        Column {
            name: "COMM",
            width: 16,
            cell: |record, to| to.push_str(record.closer_comm.as_ref().unwrap_or(&record.comm)),
        },
        Column {
            name: "IP",
            width: 2,
            cell: |record, to| match record.ip {
                Some(ip) => push_number(to, ip),
                None => to.push('?'),
            },
        },
        Column {
            name: "SADDR",
            width: 16,
            cell: |record, to| append_address(to, record.ip, &record.saddr),
        },
        Column {
            name: "DADDR",
            width: 16,
            cell: |record, to| append_address(to, record.ip, &record.daddr),
        },
        Column {
            name: "SPORT",
            width: 6,
            cell: |record, to| push_number(to, record.sport),
        },
        Column {
            name: "DPORT",
            width: 6,
            cell: |record, to| push_number(to, record.dport),
        },
    ]
}

/// Its network namespace.
pub const fn netns<T>(width: usize) -> Column<T> {
    Column {
        name: "NETNS",
        width,
        cell: |record, to| push_number(to, record.netns),
    }
}

/// How it went.
pub const fn lifecycle<T>() -> [Column<T>; 6] {
    [
        Column {
            name: "REASON",
            width: 12,
            cell: |record, to| to.push_str(record.reason.map_or("-", Reason::name)),
        },
        Column {
            name: "MS",
            width: 12,
            cell: |record, to| append_millis(to, record.duration_ns.map(|ns| ns as f64 / 1e6)),
        },
        Column {
            name: "TX_BYTES",
            width: 10,
            cell: |record, to| append_or_dash(to, record.bytes_sent),
        },
        Column {
            name: "RX_BYTES",
            width: 10,
            cell: |record, to| append_or_dash(to, record.bytes_received),
        },
        Column {
            name: "RETRANS",
            width: 7,
            cell: |record, to| append_or_dash(to, record.retransmits),
        },
        Column {
            name: "RTT(ms)",
            width: 8,
            cell: |record, to| append_millis(to, record.srtt_us.map(|us| us as f64 / 1e3)),
        },
    ]
}

fn append_or_dash(to: &mut String, value: Option<impl itoa::Integer>) {
    match value {
        Some(value) => push_number(to, value),
        None => to.push('-'),
    }
}

fn append_millis(to: &mut String, millis: Option<f64>) {
    match millis {
        // A string takes everything.
        Some(millis) => _ = write!(to, "{millis:.3}"),
        None => to.push('-'),
    }
}

/// As bcc writes it: with C's `inet_ntop`, IPv6 in brackets. Rust differs from C for `::a.b.c.d` only.
fn append_address(to: &mut String, ip: Option<u8>, address: &str) {
    if ip != Some(6) {
        return to.push_str(address);
    }
    to.push('[');
    let differs = || address.parse().ok().and_then(v4_compatible);
    match address.starts_with("::").then(differs).flatten() {
        Some(v4) => _ = write!(to, "::{v4}"),
        None => to.push_str(address),
    }
    to.push(']');
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

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn written(ip: Option<u8>, address: &str) -> String {
        let mut written = String::new();
        append_address(&mut written, ip, address);
        written
    }

    #[test]
    fn addresses_are_written_as_inet_ntop_does() {
        for text in [
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::1.2.3.4",
            "::12",
            "2001:db8::1:0:0:1",
            "fe80::1",
            "2001:db8:1111:2222:3333:4444:5555:6666",
        ] {
            let ip: IpAddr = text.parse().expect("an address");
            assert_eq!(written(Some(6), &ip.to_string()), format!("[{text}]"));
        }
        assert_eq!(written(Some(4), "127.0.0.1"), "127.0.0.1");
    }
}
