//! The load: one thread that opens and closes connections to itself as fast as it can.
//!
//! It has a network namespace of its own, with nothing but the loopback in it, which the kernel
//! removes with the thread. Both ends of each connection are in this thread, so its CPU time holds
//! everything the connection costs, what the softirq and the tracer's programs take included.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::time::{ClockId, clock_gettime};
use tcptracer_testing::Netns;

use crate::cpu::pin_to_cpu;

/// More sockets in TIME_WAIT make each connection dearer until there are as many as there can be.
const TIME_WAIT_BUCKETS: &str = "4096";

/// Connections between two looks at the clock.
const BURST: u64 = 16;

/// What one slice of load has taken.
#[derive(Clone, Copy, Debug)]
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

enum Order {
    /// Connections one after the other for this long.
    Run(Duration),
    /// So many connections; before each opening and each closing a pause of this long.
    Sparse(u32, Duration),
    /// From now on, connect to a port that was not used before.
    ChangePort,
}

/// The load thread. It ends, and its network namespace with it, when this is dropped.
pub struct Load {
    orders: Sender<Order>,
    slices: Receiver<Result<Slice>>,
    /// Inode of the network namespace.
    pub netns: u32,
    /// Where the connections go.
    pub port: u16,
}

impl Load {
    pub fn start(cpu: usize) -> Result<Self> {
        let (orders, todo) = mpsc::channel();
        let (done, slices) = mpsc::channel();
        let netns = Netns::new();
        netns.sysctl("ipv4/tcp_max_tw_buckets", TIME_WAIT_BUCKETS);

        let (ready_sender, ready) = mpsc::channel();
        let load = thread::Builder::new().name("load".into());
        let run = move || {
            let begun = pin_to_cpu(cpu).and_then(|()| listen());
            match begun {
                Ok((listener, port)) => {
                    let _ = ready_sender.send(Ok(port));
                    serve(listener, &todo, &done);
                }
                Err(e) => {
                    let _ = ready_sender.send(Err(e));
                }
            }
        };
        netns.enter(|| load.spawn(run))?;
        let port = ready.recv().context("the load thread died")??;
        Ok(Self {
            orders,
            slices,
            netns: u32::try_from(netns.inode)?,
            port,
        })
    }

    pub fn run(&self, time: Duration) -> Result<Slice> {
        self.order(Order::Run(time))
    }

    pub fn sparse(&self, connections: u32, pause: Duration) -> Result<Slice> {
        self.order(Order::Sparse(connections, pause))
    }

    /// Returns the new port.
    pub fn change_port(&mut self) -> Result<u16> {
        self.port = u16::try_from(self.order(Order::ChangePort)?.connections)?;
        Ok(self.port)
    }

    fn order(&self, order: Order) -> Result<Slice> {
        let dead = || anyhow!("the load thread died");
        self.orders.send(order).map_err(|_| dead())?;
        self.slices.recv().map_err(|_| dead())?
    }
}

fn listen() -> Result<(TcpListener, u16)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

fn serve(mut listener: TcpListener, todo: &Receiver<Order>, done: &Sender<Result<Slice>>) {
    for order in todo {
        let slice = match order {
            Order::Run(time) => run(&listener, time),
            Order::Sparse(connections, pause) => sparse(&listener, connections, pause),
            Order::ChangePort => listen().map(|(new, port)| {
                listener = new;
                Slice {
                    connections: port.into(),
                    wall: Duration::ZERO,
                    cpu: Duration::ZERO,
                }
            }),
        };
        if done.send(slice).is_err() {
            return;
        }
    }
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
