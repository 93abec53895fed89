/*!
A running tracer: the ring thread, from start to stop.

The ring thread owns the loaded object, the ring and the counters from load to drop, so that links
never outlive it. It never blocks on anything but the ring, and never panics: a panic in a ring
callback would abort the process. What its consumer is too slow to take is dropped and counted.

The reader costs nothing while nothing happens: it says that it is about to block, and the next
event wakes it. While events keep coming it drains on a timer and nobody wakes it.
*/

use std::cell::RefCell;
use std::fs;
use std::iter;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use libbpf_rs::{Link, MapCore, MapFlags, ProgramMut, RingBuffer, RingBufferBuilder};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::config::Config;
use super::load::{attach, load, snapshot};
use super::probe::Plan;
use super::skel::TcptracerSkel;
use super::skel::types::tt_counter;
use super::wire;
use crate::event::{Event, Kind, Losses, Source};

/// Between two drains while events keep coming. Bounds the latency of an event in a burst; at most
/// 500 wake-ups a second cost little beside what the events cost.
const DRAIN_INTERVAL: Duration = Duration::from_millis(2);

/// Between two looks at the counters while events keep coming.
const LOSS_INTERVAL: Duration = Duration::from_millis(250);

/// Events handed over at a time, so that the consumer starts before a full ring is drained.
const BATCH: usize = 512;

/// Batches the consumer may lag behind before its events are dropped: about 30 MiB.
const QUEUE: usize = 256;

/// Accepts that no hook saw before the io_uring hook is attached. It costs every completion of
/// every ring on the host, so one stray accept is not enough.
const UNSEEN_ACCEPTS: u32 = 3;

/// What the ring thread says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Events, in the order of the ring.
    Events(Vec<Event>),
    /// The totals since the start, whenever one of them has grown.
    Lost(Losses),
}

/// A running tracer. Dropping it detaches everything; nothing stays in the kernel.
#[derive(Debug)]
pub struct Tracer {
    plan: Plan,
    /// Closing it stops the ring thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<Losses>>,
}

impl Tracer {
    /// Loads, attaches, and takes the snapshot; when it returns, every connection is followed.
    ///
    /// The receiver yields what happens until the tracer is stopped.
    pub fn start(config: Config) -> Result<(Self, Receiver<Message>)> {
        let (stop, stopped) = UnixStream::pair().context("cannot make a socket pair")?;
        let (sender, receiver) = mpsc::sync_channel(QUEUE);
        let (ready_sender, ready) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("tt-ring".into())
            .spawn(move || ring_thread(&config, &stopped, sender, &ready_sender))
            .context("cannot start the ring thread")?;
        let plan = ready
            .recv()
            .unwrap_or_else(|_| Err(anyhow!("the ring thread ended before it was ready")))?;

        Ok((
            Self {
                plan,
                stop: Some(stop),
                thread: Some(thread),
            },
            receiver,
        ))
    }

    /// What is loaded.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Detaches, hands over what is still in the ring, and says what was lost in all.
    pub fn stop(mut self) -> Losses {
        self.join()
    }

    fn join(&mut self) -> Losses {
        drop(self.stop.take());
        self.thread
            .take()
            .and_then(|t| t.join().ok())
            .unwrap_or_default()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.join();
    }
}

fn ring_thread(
    config: &Config,
    stopped: &UnixStream,
    sender: SyncSender<Message>,
    ready: &SyncSender<Result<Plan>>,
) -> Losses {
    let mut object = MaybeUninit::uninit();
    let (mut skel, plan) = match load(config, &mut object) {
        Ok(loaded) => loaded,
        Err(e) => {
            let _ = ready.send(Err(e));
            return Losses::default();
        }
    };
    // The ring's callback and the loop take turns, so neither finds it borrowed.
    let outlet = RefCell::new(Outlet::new(sender));
    match begin(&skel, &plan, config.failed, &outlet) {
        Ok((ring, links)) => {
            let _ = ready.send(Ok(plan));
            drain_until(stopped, &mut skel, &ring, links, plan, &outlet)
        }
        Err(e) => {
            let _ = ready.send(Err(e));
            Losses::default()
        }
    }
}

/// Everything that can fail between load and the first drain.
fn begin<'a>(
    skel: &TcptracerSkel<'_>,
    plan: &Plan,
    failed: bool,
    outlet: &'a RefCell<Outlet>,
) -> Result<(RingBuffer<'a>, Vec<Link>)> {
    let ring = open_ring(skel, outlet).context("cannot open the ring")?;
    let links = attach(skel, plan, failed)?;
    if plan.snapshot {
        let mut outlet = outlet.borrow_mut();
        for event in snapshot(skel)? {
            outlet.put(event);
        }
        outlet.flush();
    }
    Ok((ring, links))
}

/// Where decoded events leave the ring thread, in batches, without ever blocking.
struct Outlet {
    sender: SyncSender<Message>,
    batch: Vec<Event>,
    queue_full: u64,
    undecodable: u64,
    unseen_accepts: u32,
}

impl Outlet {
    fn new(sender: SyncSender<Message>) -> Self {
        Self {
            sender,
            batch: Vec::with_capacity(BATCH),
            queue_full: 0,
            undecodable: 0,
            unseen_accepts: 0,
        }
    }

    fn put_record(&mut self, record: &[u8]) {
        match wire::decode(record) {
            Ok(event) => self.put(event),
            Err(_) => self.undecodable += 1,
        }
    }

    fn put(&mut self, event: Event) {
        if event.kind == Kind::Accept && event.source != Source::Accept {
            self.unseen_accepts += 1;
        }
        self.batch.push(event);
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        let count = batch.len() as u64;
        // A consumer that is gone loses nothing it wanted.
        if let Err(TrySendError::Full(_)) = self.sender.try_send(Message::Events(batch)) {
            self.queue_full += count;
        }
    }
}

/// Reads the counters and tells the consumer when they have grown.
///
/// They grow with events only. So a look is due some time after an event, and none while nothing
/// happens; each costs a dozen system calls.
struct LossReport {
    told: Losses,
    due: Option<Instant>,
}

impl LossReport {
    /// The snapshot may have found no room already.
    fn new() -> Self {
        Self {
            told: Losses::default(),
            due: Some(Instant::now()),
        }
    }

    fn events_came(&mut self) {
        self.due
            .get_or_insert_with(|| Instant::now() + LOSS_INTERVAL);
    }

    /// How long until the next look, if there is to be one.
    fn due_in(&self) -> Option<Duration> {
        Some(self.due?.saturating_duration_since(Instant::now()))
    }

    fn look_if_due(&mut self, skel: &TcptracerSkel<'_>, outlet: &Outlet) {
        if self.due_in() == Some(Duration::ZERO) {
            self.look(skel, outlet);
        }
    }

    fn look(&mut self, skel: &TcptracerSkel<'_>, outlet: &Outlet) -> Losses {
        let now = read_losses(skel, outlet);
        self.due = None;
        if now != self.told {
            match outlet.sender.try_send(Message::Lost(now)) {
                Ok(()) => self.told = now,
                // Full: the totals are kept and told later.
                Err(_) => self.due = Some(Instant::now() + LOSS_INTERVAL),
            }
        }
        now
    }
}

fn read_losses(skel: &TcptracerSkel<'_>, outlet: &Outlet) -> Losses {
    let counter = |which: tt_counter| -> u64 {
        let values = skel
            .maps
            .counters
            .lookup_percpu(&which.0.to_ne_bytes(), MapFlags::ANY);
        values.ok().flatten().map_or(0, |per_cpu| {
            per_cpu
                .iter()
                .filter_map(|v| Some(u64::from_ne_bytes(v.get(..8)?.try_into().ok()?)))
                .sum()
        })
    };
    let progs = &skel.progs;
    Losses {
        ring_full: counter(tt_counter::TT_RING_FULL),
        map_full: counter(tt_counter::TT_MAP_FULL),
        untracked: counter(tt_counter::TT_UNTRACKED),
        queue_full: outlet.queue_full,
        undecodable: outlet.undecodable,
        skipped_runs: [
            &progs.tt_set_state,
            &progs.tt_destroy_sock,
            &progs.tt_exit_accept,
            &progs.tt_exit_accept4,
            &progs.tt_inet_csk_accept,
            &progs.tt_io_uring_complete,
            &progs.tt_exit_connect,
        ]
        .into_iter()
        .map(recursion_misses)
        .sum(),
    }
}

/// The kernel counts them and shows them with the program's descriptor; older than 5.12 it does
/// neither. A program that is not loaded has no descriptor.
fn recursion_misses(prog: &ProgramMut<'_>) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", prog.as_fd().as_raw_fd());
    let info = fs::read_to_string(path).unwrap_or_default();
    info.lines()
        .find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
        .unwrap_or(0)
}

/// The life of the ring thread after the start. Returns when `stopped` is closed.
fn drain_until(
    stopped: &UnixStream,
    skel: &mut TcptracerSkel<'_>,
    ring: &RingBuffer<'_>,
    mut links: Vec<Link>,
    plan: Plan,
    outlet: &RefCell<Outlet>,
) -> Losses {
    let mut report = LossReport::new();
    let mut io_uring_wanted = plan.io_uring_accept;

    loop {
        let drained = ring.consume_raw() > 0;
        let mut out = outlet.borrow_mut();
        out.flush();
        if io_uring_wanted && out.unseen_accepts >= UNSEEN_ACCEPTS {
            io_uring_wanted = false;
            links.extend(skel.progs.tt_io_uring_complete.attach());
        }
        if drained {
            report.events_came();
        }
        report.look_if_due(skel, &out);
        drop(out);
        if drained {
            if is_ready(stopped.as_fd(), &[], Some(DRAIN_INTERVAL)) {
                break;
            }
            continue;
        }
        set_parked(skel, true);
        // What came in after the last drain saw no parked reader: look once more. A flag that is
        // down by then stands for a wake-up that this look has swallowed.
        if ring.consume_raw() > 0 {
            report.events_came();
        } else if is_parked(skel)
            && is_ready(
                stopped.as_fd(),
                &[skel.maps.events.as_fd()],
                report.due_in(),
            )
        {
            break;
        }
        set_parked(skel, false);
    }
    drop(links);
    ring.consume_raw();
    let mut out = outlet.borrow_mut();
    out.flush();
    report.look(skel, &out)
}

fn open_ring<'a>(skel: &TcptracerSkel<'_>, outlet: &'a RefCell<Outlet>) -> Result<RingBuffer<'a>> {
    let mut builder = RingBufferBuilder::new();
    builder.add(&skel.maps.events, |record| {
        outlet.borrow_mut().put_record(record);
        0
    })?;
    Ok(builder.build()?)
}

/// Tells the programs whether the next event has to wake us.
fn set_parked(skel: &mut TcptracerSkel<'_>, parked: bool) {
    if let Some(bss) = skel.maps.bss_data.as_deref_mut() {
        bss.tt_reader_parked = parked.into();
    }
    // Orders the store before the look at the ring; the programs do the reverse.
    fence(Ordering::SeqCst);
}

fn is_parked(skel: &TcptracerSkel<'_>) -> bool {
    fence(Ordering::SeqCst);
    // The programs write it behind the compiler's back.
    let bss = std::hint::black_box(skel.maps.bss_data.as_deref());
    bss.is_some_and(|bss| bss.tt_reader_parked != 0)
}

/// Waits until there is something to read from `first` or `others`, at most for `limit`; says
/// whether there is from `first`.
fn is_ready(first: BorrowedFd<'_>, others: &[BorrowedFd<'_>], limit: Option<Duration>) -> bool {
    let limit = limit.and_then(|l| Timespec::try_from(l).ok());
    let mut fds: Vec<_> = iter::once(&first)
        .chain(others)
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    // An interrupted wait is a short one.
    poll(&mut fds, limit.as_ref()).is_ok() && !fds[0].revents().is_empty()
}
