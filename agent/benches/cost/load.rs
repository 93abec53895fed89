//! The load: one thread that opens and closes connections to itself as fast as it can.
//!
//! It is in a process of its own, which is the only one in the cgroup of a pod. It has a network namespace of its own as well,
//! with nothing but the loopback in it, which the kernel removes with the process. Both ends of each connection are in this
//! thread, so its CPU time holds everything the connection costs, what the softirq and the tracer's programs take included.

use std::env;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::getppid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, to_value};
use tcptracer_testing::{Cgroup, Netns};

use crate::worker::{self, Worker};

/// The argument that makes this binary the load.
pub const ROLE: &str = "--load-process";

/// More sockets in TIME_WAIT make each connection dearer until there are as many as there can be.
const TIME_WAIT_BUCKETS: &str = "4096";

/// Events that each connection makes.
pub const EVENTS: u64 = 4;

/// Connections between two looks at the clock.
const BURST: u64 = 16;

/// Unrelated system calls at a time: some milliseconds.
const CALLS: u32 = 20_000;

/// What one slice of load has taken.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Slice {
    pub connections: u64,
    pub wall: Duration,
    pub cpu: Duration,
}

impl Slice {
    /// CPU time of the load thread for one connection, in microseconds.
    pub fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.connections as f64
    }

    /// Connections a second.
    pub fn rate(&self) -> f64 {
        self.connections as f64 / self.wall.as_secs_f64()
    }
}

#[derive(Serialize, Deserialize)]
enum Order {
    /// From now on, connect to a port that was not used before. Answered by where that is.
    Listen,
    /// Connections one after the other for this long. Answered by a slice.
    Run(Duration),
    /// So many connections; before each opening and each closing a pause of this long. Answered by a slice.
    Sparse(u32, Duration),
    /// System calls that have nothing to do with connections. Answered by the nanoseconds of one.
    Unrelated,
}

/// Where the connections go.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Place {
    netns: u32,
    port: u16,
}

/// The load's process. It ends, and its network namespace with it, when this is dropped.
pub struct Load {
    process: Worker,
    /// Inode of the network namespace.
    pub netns: u32,
}

impl Load {
    /// In the cgroup from before its first socket on.
    pub fn start(cpu: usize, cgroup: &Cgroup) -> Result<Self> {
        let process = Worker::spawn(env::current_exe()?.as_os_str(), ROLE, cpu)?;
        cgroup.add(process.pid());
        let mut load = Self { process, netns: 0 };
        load.netns = load.order::<Place>(&Order::Listen)?.netns;
        Ok(load)
    }

    pub fn run(&mut self, time: Duration) -> Result<Slice> {
        self.order(&Order::Run(time))
    }

    pub fn sparse(&mut self, connections: u32, pause: Duration) -> Result<Slice> {
        self.order(&Order::Sparse(connections, pause))
    }

    /// CPU time of a system call that has nothing to do with connections, in nanoseconds.
    pub fn unrelated_ns(&mut self) -> Result<f64> {
        self.order(&Order::Unrelated)
    }

    /// Returns the new port.
    pub fn change_port(&mut self) -> Result<u16> {
        Ok(self.order::<Place>(&Order::Listen)?.port)
    }

    fn order<A: DeserializeOwned>(&mut self, order: &Order) -> Result<A> {
        let answer: Result<A, String> = self.process.ask(order).context("the load")?;
        answer.map_err(|why| anyhow!("the load: {why}"))
    }
}

/// The other side: takes orders until its input ends.
pub fn serve(cpu: &str) -> Result<()> {
    worker::settle(cpu)?;
    let netns = Netns::new();
    netns.sysctl("ipv4/tcp_max_tw_buckets", TIME_WAIT_BUCKETS);
    let inode = u32::try_from(netns.inode)?;
    netns.enter(|| {
        let mut listener = None;
        worker::serve(|order| obey(order, inode, &mut listener).map_err(|e| format!("{e:#}")))
    })
}

fn obey(order: Order, netns: u32, listener: &mut Option<TcpListener>) -> Result<Value> {
    let here = || listener.as_ref().context("it was not told to listen");
    let answer = match order {
        Order::Listen => {
            let new = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
            let port = new.local_addr()?.port();
            *listener = Some(new);
            to_value(Place { netns, port })
        }
        Order::Run(time) => to_value(run(here()?, time)?),
        Order::Sparse(connections, pause) => to_value(sparse(here()?, connections, pause)?),
        Order::Unrelated => to_value(unrelated()?),
    };
    Ok(answer?)
}

fn run(listener: &TcpListener, time: Duration) -> Result<Slice> {
    let to = listener.local_addr()?;
    measured(|begin| {
        let mut connections = 0;
        while begin.elapsed() < time {
            for _ in 0..BURST {
                let (client, server) = open(listener, to)?;
                drop(client);
                drop(server);
            }
            connections += BURST;
        }
        Ok(connections)
    })
}

fn sparse(listener: &TcpListener, connections: u32, pause: Duration) -> Result<Slice> {
    let to = listener.local_addr()?;
    measured(|_| {
        for _ in 0..connections {
            thread::sleep(pause);
            let (client, server) = open(listener, to)?;
            thread::sleep(pause);
            drop(client);
            drop(server);
        }
        Ok(connections.into())
    })
}

fn open(listener: &TcpListener, to: SocketAddr) -> Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(to).context("cannot connect")?;
    let (server, _) = listener.accept().context("cannot accept")?;
    Ok((client, server))
}

fn unrelated() -> Result<f64> {
    let before = thread_cpu_time()?;
    for _ in 0..CALLS {
        getppid();
    }
    let taken = thread_cpu_time()?.saturating_sub(before);
    Ok(taken.as_nanos() as f64 / f64::from(CALLS))
}

fn measured(work: impl FnOnce(Instant) -> Result<u64>) -> Result<Slice> {
    let cpu = thread_cpu_time()?;
    let begin = Instant::now();
    let connections = work(begin)?;
    Ok(Slice {
        connections,
        wall: begin.elapsed(),
        cpu: thread_cpu_time()?.saturating_sub(cpu),
    })
}

fn thread_cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
