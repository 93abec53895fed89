//! `tcptracer-agent probe`: asks the agent that runs beside it how it is.
//!
//! For a kubelet's probe by command, so that an agent need not listen on the pod's network.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

/// Where health and metrics are served unless told otherwise.
pub const HTTP_LISTEN: &str = "0.0.0.0:9465";

/// How long the agent may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// An answer may have this many bytes.
const MAX_ANSWER: u64 = 64 << 10;

/// Options of `probe`.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct HealthArgs {
    /// Whether it is alive, or ready
    #[arg(value_enum)]
    pub what: Endpoint,

    /// Where the agent serves /livez and /readyz
    #[arg(
        long,
        env = "TCPTRACER_HTTP_LISTEN",
        value_name = "ADDRESS",
        default_value = HTTP_LISTEN
    )]
    pub http_listen: SocketAddr,
}

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Endpoint {
    /// Whether it still works
    Livez,
    /// Whether it traces, and knows the pods
    Readyz,
}

/// Exits with 0 if the answer is yes; otherwise says why not.
pub fn ask(args: &HealthArgs) -> Result<ExitCode> {
    let path = match args.what {
        Endpoint::Livez => "/livez",
        Endpoint::Readyz => "/readyz",
    };
    let address = reachable(args.http_listen);
    let answer = get(address, path).with_context(|| format!("no agent answers at {address}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(ExitCode::SUCCESS),
        Some(_) if !body.trim().is_empty() => bail!("{path}: {}", body.trim().escape_debug()),
        _ => bail!("{path}: what answers at {address} is no agent"),
    }
}

/// A server that listens on every address is asked on the loopback device.
fn reachable(mut listens: SocketAddr) -> SocketAddr {
    match listens.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => listens.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => listens.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    listens
}

fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // With HTTP/1.0 the answer ends with the connection, and comes in one piece.
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_listens_everywhere_is_asked_nearby() {
        for (listens, asked) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("10.0.0.1:1", "10.0.0.1:1"),
        ] {
            let listens = listens.parse().expect("an address");
            assert_eq!(reachable(listens).to_string(), asked);
        }
    }
}
