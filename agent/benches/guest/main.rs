/*!
What runs in the guests of `make bench-kernels`, beside the tools that are measured.

`load` makes connections and says what they took; `hold` attaches programs until it is killed; `attached` says what a tool has
attached. In those guests a nanosecond is an
instruction, so times are counts, and the same in every run.
*/

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use libbpf_rs::ObjectBuilder;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::getppid;
use serde_json::json;
use tcptracer_testing::attached_programs;

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make connections, both ends in this thread, and write what one took as a line of JSON
    Load {
        /// What the line is called
        row: String,
        /// So many
        connections: u64,
        /// Over IPv6
        #[arg(long)]
        ipv6: bool,
        /// So many writes of a byte by the client, each read by the server
        #[arg(long, default_value_t = 0)]
        writes: u64,
    },
    /// Write which programs a process has attached, as a line of JSON
    Attached {
        /// The process
        pid: u32,
    },
    /// Attach the programs of an object until killed
    Hold {
        /// The object
        object: PathBuf,
    },
}

/// System calls that have nothing to do with connections.
const UNRELATED: u64 = 10_000;

fn main() -> Result<()> {
    // cargo test --all-targets runs this as well.
    if std::env::args().len() == 1 {
        return Ok(());
    }
    match Options::parse().command {
        Command::Load {
            row,
            connections,
            ipv6,
            writes,
        } => {
            let ip = match ipv6 {
                true => Ipv6Addr::LOCALHOST.into(),
                false => Ipv4Addr::LOCALHOST.into(),
            };
            let listener = TcpListener::bind(SocketAddr::new(ip, 0)).context("cannot listen")?;
            let [thread, wall] = taken(connections, || connect(&listener, writes))?;
            let [unrelated, _] = taken(UNRELATED, || {
                getppid();
                Ok(())
            })?;
            println!(
                "{{\"row\": \"{row}\", \"thread\": {thread}, \"wall\": {wall}, \"unrelated\": {unrelated}}}"
            );
            Ok(())
        }
        Command::Attached { pid } => {
            println!("{}", json!({ "attached": attached_programs(pid) }));
            Ok(())
        }
        Command::Hold { object } => {
            let object = ObjectBuilder::default().open_file(object)?.load()?;
            let links: Vec<_> = object.progs_mut().map(|prog| prog.attach()).collect();
            let _links = links.into_iter().collect::<Result<Vec<_>, _>>()?;
            loop {
                thread::park();
            }
        }
    }
}

/// One connection from open to close, the client's end closed first.
fn connect(listener: &TcpListener, writes: u64) -> Result<()> {
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    for _ in 0..writes {
        client.write_all(b"x")?;
        server.read_exact(&mut [0])?;
    }
    drop(client);
    drop(server);
    Ok(())
}

/// What this thread takes for one of so many, and how long that takes.
fn taken(times: u64, mut what: impl FnMut() -> Result<()>) -> Result<[u64; 2]> {
    let now = || -> Result<[u64; 2]> {
        let read = |clock| -> Result<u64> {
            let time = clock_gettime(clock)?;
            Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
        };
        Ok([
            read(ClockId::CLOCK_THREAD_CPUTIME_ID)?,
            read(ClockId::CLOCK_MONOTONIC)?,
        ])
    };
    let before = now()?;
    for _ in 0..times {
        what()?;
    }
    let after = now()?;
    Ok([0, 1].map(|clock| (after[clock] - before[clock]) / times))
}
