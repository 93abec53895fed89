/*!
A running tracer: the ring thread, from start to stop.

The ring thread owns the loaded object, the ring and the counters from load to drop, and so the links
([`super::attachment`]). It never blocks on anything but the ring, and never panics: a panic in a ring
callback would abort the process. What its consumer is too slow to take is dropped and counted.

The reader costs next to nothing while nothing happens: it says that it is about to block, and the next
event wakes it; while hooks are attached it looks at the counters about once a second. While events keep coming it
drains on a timer and nobody wakes it.
*/

use std::cell::RefCell;
use std::iter;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use libbpf_rs::{MapCore, MapFlags, OpenObject, RingBuffer, RingBufferBuilder};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tcptracer_event::{CgroupChange, Event, Kind, Losses, Source};

use super::attachment::{Attachment, Found};
use super::config::Config;
use super::connections::Connections;
use super::control::{Asks, Control, HooksAsk};
use super::generation::Generation;
use super::hooks::{Place, Shortcoming};
use super::load::load;
use super::plan::{Facts, Plan};
use super::programs::{self, Program};
use super::seeder::Seeder;
use super::skel::TcptracerSkel;
use super::skel::types::tt_counter;
use super::wire::{self, Reported};

/// Between two drains while events keep coming. Bounds the latency of an event in a burst; at most
/// 500 wake-ups a second cost little beside what the events cost.
const DRAIN_INTERVAL: Duration = Duration::from_millis(2);

/// Between two looks at the counters while events keep coming.
const LOSS_INTERVAL: Duration = Duration::from_millis(250);

/// The same while none come and hooks are attached. Leaves time to report what was lost within a second.
const QUIET_INTERVAL: Duration = Duration::from_millis(800);

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
    /// Cgroups came or went, in this order. That a cgroup came is said before the events of processes in it.
    Cgroups(Vec<CgroupChange>),
    /// What the plan had is missing from now on, for this reason.
    Lacks(Shortcoming, String),
    /// What the ask for hooks of this number asked for has been done: what is open is followed, what nobody asks for is
    /// detached. Or why not; then what was attached before still is, and nothing else.
    Hooks(u64, Result<(), String>),
    /// So many asks for a flush have been answered: what the kernel had reported by the last of them has been said, and
    /// what had been lost.
    Flushed(u64),
}

/// Takes what the ring thread says, and never blocks.
pub type Consumer = Box<dyn FnMut(Message) -> Result<(), NoRoom> + Send>;

/// The consumer has no room; what it was given is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// A running tracer. Dropping it detaches everything; nothing stays in the kernel.
#[derive(Debug)]
pub struct Tracer {
    plan: Plan,
    connections: Connections,
    generation: Generation,
    seeder: Seeder,
    programs: Arc<[Program]>,
    control: Control,
    thread: Option<JoinHandle<Losses>>,
}

impl Tracer {
    /// As [`Self::start_with`], with a queue; the receiver yields what happens until the tracer is
    /// stopped.
    pub fn start(config: Config) -> Result<(Self, Receiver<Message>)> {
        let (sender, receiver) = mpsc::sync_channel(QUEUE);
        let consumer = move |message| match sender.try_send(message) {
            Err(TrySendError::Full(_)) => Err(NoRoom),
            // A consumer that is gone loses nothing it wanted.
            Ok(()) | Err(TrySendError::Disconnected(_)) => Ok(()),
        };
        Ok((Self::start_with(config, Box::new(consumer))?, receiver))
    }

    /// Loads, attaches, and takes the snapshot; when it returns, every connection is followed.
    pub fn start_with(config: Config, consumer: Consumer) -> Result<Self> {
        let (control, asks) =
            Asks::new(config.on_demand.unwrap_or_default()).context("cannot make a socket pair")?;
        let (ready_sender, ready) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("tt-ring".into())
            .spawn(move || ring_thread(&config, asks, consumer, &ready_sender))
            .context("cannot start the ring thread")?;
        let ready = ready
            .recv()
            .unwrap_or_else(|_| Err(anyhow!("the ring thread ended before it was ready")))?;

        Ok(Self {
            plan: ready.plan,
            connections: ready.connections,
            generation: ready.generation,
            seeder: ready.seeder,
            programs: ready.programs,
            control,
            thread: Some(thread),
        })
    }

    /// The connections that are followed, whatever the filters.
    pub fn connections(&self) -> &Connections {
        &self.connections
    }

    /// For who changes the filter maps, if nobody else does.
    pub fn generation(&self) -> Generation {
        self.generation.clone()
    }

    /// For the same.
    pub fn seeder(&self) -> Seeder {
        self.seeder.clone()
    }

    /// The programs that are loaded.
    pub fn programs(&self) -> Arc<[Program]> {
        Arc::clone(&self.programs)
    }

    /// What is loaded.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// To ask for what the kernel has reported, and for hooks.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Detaches, hands over what is still in the ring, and says what was lost in all.
    pub fn stop(mut self) -> Losses {
        self.join()
    }

    fn join(&mut self) -> Losses {
        self.control.stop();
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

/// What the ring thread hands to its owner once all is attached.
struct Ready {
    plan: Plan,
    connections: Connections,
    generation: Generation,
    seeder: Seeder,
    programs: Arc<[Program]>,
}

impl Ready {
    fn new(
        skel: &TcptracerSkel<'_>,
        plan: Plan,
        config: &Config,
        undecodable: Arc<AtomicU64>,
    ) -> Result<Self> {
        let generation = Generation::new(
            &skel.maps.data_generation,
            &skel.maps.verdicts,
            &skel.maps.data_made,
        )?;

        Ok(Self {
            plan,
            connections: Connections::new(&skel.maps.sets, &skel.maps.conns, undecodable)?,
            seeder: Seeder::new(generation.clone()),
            generation,
            programs: programs::loaded(skel, &plan, config)?,
        })
    }
}

fn ring_thread(
    config: &Config,
    asks: Asks,
    consumer: Consumer,
    ready: &SyncSender<Result<Ready>>,
) -> Losses {
    let [mut first, mut second] = [const { MaybeUninit::uninit() }; 2];
    // The ring's callback and the loop take turns, so neither finds it borrowed.
    let outlet = RefCell::new(Outlet::new(consumer));
    let cgroups = config.cgroups.is_some();
    // Nearly every kernel allows everything. Where one does not, it is found out what it does.
    let started = start(config, &Facts::assume(cgroups), &asks, &mut first, &outlet)
        .or_else(|_| start(config, &Facts::gather(cgroups), &asks, &mut second, &outlet));
    match started {
        Ok((mut skel, ring, hooks, started)) => {
            let report = LossReport::new(Arc::clone(&started.programs));
            let _ = ready.send(Ok(started));
            drain_until_stopped(asks, &mut skel, &ring, hooks, report, &outlet)
        }
        Err(e) => {
            let _ = ready.send(Err(e));
            Losses::default()
        }
    }
}

type Started<'o, 'a> = (TcptracerSkel<'o>, RingBuffer<'a>, Hooks, Ready);

fn start<'o, 'a>(
    config: &Config,
    facts: &Facts,
    asks: &Asks,
    object: &'o mut MaybeUninit<OpenObject>,
    outlet: &'a RefCell<Outlet>,
) -> Result<Started<'o, 'a>> {
    let (mut skel, plan) = load(config, facts, object)?;
    let (ring, hooks, ready) = begin(&mut skel, plan, config, asks, outlet)?;
    Ok((skel, ring, hooks, ready))
}

/// Everything that can fail between load and the first drain. All hooks are attached, also those that are to be attached
/// on demand: so it is known that they can be.
fn begin<'a>(
    skel: &mut TcptracerSkel<'_>,
    plan: Plan,
    config: &Config,
    asks: &Asks,
    outlet: &'a RefCell<Outlet>,
) -> Result<(RingBuffer<'a>, Hooks, Ready)> {
    let undecodable = Arc::clone(&outlet.borrow().undecodable);
    let ready = Ready::new(skel, plan, config, undecodable)?;
    outlet.borrow_mut().generation = Some(ready.generation.clone());
    let ring = open_ring(skel, outlet).context("cannot open the ring")?;
    let programs = Arc::clone(&ready.programs);
    let attachment = Attachment::new(skel, plan, config, programs, ready.seeder.clone())?;
    let mut hooks = Hooks {
        attachment,
        on_demand: config.on_demand.is_some(),
        answered: None,
        io_uring_wanted: plan.io_uring_accept,
    };
    // There is nothing to detach that would have to be waited for.
    if let Some(found) = hooks
        .attachment
        .follow(skel, config.demand(), &asks.waker())
    {
        outlet.borrow_mut().put_found(found?);
    }
    Ok((ring, hooks, ready))
}

/// The hooks, and what has been said of them.
struct Hooks {
    attachment: Attachment,
    /// They are attached as they are asked for.
    on_demand: bool,
    /// The last ask that was answered; unlike the asks, there is one from the start.
    answered: Option<u64>,
    /// That of io_uring may be attached, should it be needed.
    io_uring_wanted: bool,
}

impl Hooks {
    /// What is asked for, if that has not been answered.
    fn open(&self, asks: &Asks) -> Option<HooksAsk> {
        let ask = asks.hooks();
        (self.on_demand && self.answered != Some(ask.number)).then_some(ask)
    }

    /// Does what is asked for, and says so.
    fn follow(&mut self, skel: &mut TcptracerSkel<'_>, asks: &Asks, outlet: &mut Outlet) {
        let Some(ask) = self.open(asks) else {
            return;
        };
        let Some(followed) = self.attachment.follow(skel, ask.demand, &asks.waker()) else {
            return;
        };
        outlet.unseen_accepts = 0;
        let done = followed.map(|found| outlet.put_found(found));
        outlet.flush();
        let done = done.map_err(|e| format!("{e:#}"));
        if (outlet.consumer)(Message::Hooks(ask.number, done)).is_ok() {
            self.answered = Some(ask.number);
        }
    }

    /// Attaches the hook of io_uring, if it is needed.
    fn look_for_io_uring(&mut self, skel: &TcptracerSkel<'_>, outlet: &mut Outlet) {
        if !self.io_uring_wanted || outlet.unseen_accepts < UNSEEN_ACCEPTS {
            return;
        }
        outlet.unseen_accepts = 0;
        if let Err(e) = self.attachment.attach_needed(skel, Place::IoUring) {
            self.io_uring_wanted = false;
            outlet.lacks(Shortcoming::IoUringAccepts, &e);
        }
    }
}

/// Where decoded events leave the ring thread, in batches, without ever blocking.
struct Outlet {
    consumer: Consumer,
    /// One of these two is empty: what comes in the ring is handed over in its order.
    batch: Vec<Event>,
    changes: Vec<CgroupChange>,
    queue_full: u64,
    /// Cgroups that came or went and were not handed over.
    lost_cgroups: u64,
    /// To have new ones pass that were not. There is one once the programs are loaded.
    generation: Option<Generation>,
    /// Also counted where the table of connections is read.
    undecodable: Arc<AtomicU64>,
    unseen_accepts: u32,
}

impl Outlet {
    fn new(consumer: Consumer) -> Self {
        Self {
            consumer,
            batch: Vec::with_capacity(BATCH),
            changes: Vec::new(),
            queue_full: 0,
            lost_cgroups: 0,
            generation: None,
            undecodable: Arc::default(),
            unseen_accepts: 0,
        }
    }

    fn put_record(&mut self, record: &[u8]) {
        match wire::decode(record) {
            Ok(Reported::Event(event)) => self.put(event),
            Ok(Reported::Cgroup(change)) => self.put_cgroup(change),
            Ok(Reported::LongCgroup(id)) => self.lose_cgroups(1, Some(id)),
            Err(_) => self.count_undecodable(1),
        }
    }

    fn count_undecodable(&self, records: u64) {
        self.undecodable.fetch_add(records, Ordering::Relaxed);
    }

    fn put(&mut self, event: Event) {
        if event.kind == Kind::Accept && event.source != Source::Accept {
            self.unseen_accepts += 1;
        }
        self.flush_changes();
        self.batch.push(event);
        if self.batch.len() >= BATCH {
            self.flush_events();
        }
    }

    /// What a snapshot has found.
    fn put_found(&mut self, (events, bad): Found) {
        self.count_undecodable(bad);
        for event in events {
            self.put(event);
        }
    }

    fn put_cgroup(&mut self, change: CgroupChange) {
        self.flush_events();
        self.changes.push(change);
        if self.changes.len() >= BATCH {
            self.flush_changes();
        }
    }

    /// Should there be no room, the hook's own state says it still.
    fn lacks(&mut self, what: Shortcoming, why: &anyhow::Error) {
        let _ = (self.consumer)(Message::Lacks(what, format!("{why:#}")));
    }

    fn flush(&mut self) {
        self.flush_events();
        self.flush_changes();
    }

    fn flush_changes(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        let changes = mem::take(&mut self.changes);
        let count = changes.len() as u64;
        let first = changes.iter().find_map(|change| match change {
            CgroupChange::Made { id, .. } => Some(*id),
            CgroupChange::Removed { .. } => None,
        });
        if (self.consumer)(Message::Cgroups(changes)).is_err() {
            self.lose_cgroups(count, first);
        }
    }

    /// They are counted: who keeps track of cgroups has to look for itself. `first`: the first of them that came, if any did.
    fn lose_cgroups(&mut self, count: u64, first: Option<u64>) {
        self.lost_cgroups += count;
        if let Some((generation, first)) = self.generation.as_ref().zip(first) {
            generation.lose(first);
        }
    }

    fn flush_events(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        let count = batch.len() as u64;
        if (self.consumer)(Message::Events(batch)).is_err() {
            self.queue_full += count;
        }
    }
}

/// Reads the counters and tells the consumer when they have grown.
///
/// A look costs a dozen system calls. It is due soon after an event, as most of what is lost is lost among many, and now and then
/// while hooks are attached: what has no room in the table has no event. Without hooks there is nothing to lose.
struct LossReport {
    programs: Arc<[Program]>,
    told: Losses,
    /// The consumer knows all that the last look has found.
    is_told: bool,
    due: Option<Instant>,
}

impl LossReport {
    /// The snapshot may have found no room already.
    fn new(programs: Arc<[Program]>) -> Self {
        Self {
            programs,
            told: Losses::default(),
            is_told: false,
            due: Some(Instant::now()),
        }
    }

    fn events_came(&mut self) {
        self.look_within(LOSS_INTERVAL);
    }

    fn hooks_are_attached(&mut self) {
        self.look_within(QUIET_INTERVAL);
    }

    fn look_within(&mut self, time: Duration) {
        let due = Instant::now() + time;
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    /// How long until the next look, if there is to be one.
    fn due_in(&self) -> Option<Duration> {
        Some(self.due?.saturating_duration_since(Instant::now()))
    }

    fn look_if_due(&mut self, skel: &TcptracerSkel<'_>, outlet: &mut Outlet) {
        if self.due_in() == Some(Duration::ZERO) {
            self.look(skel, outlet);
        }
    }

    fn look(&mut self, skel: &TcptracerSkel<'_>, outlet: &mut Outlet) -> Losses {
        let now = read_losses(skel, &self.programs, outlet);
        self.is_told = now == self.told || (outlet.consumer)(Message::Lost(now)).is_ok();
        if self.is_told {
            self.told = now;
        }
        // If there was no room, the totals are kept and told later.
        self.due = (!self.is_told).then(|| Instant::now() + LOSS_INTERVAL);
        now
    }
}

fn read_losses(skel: &TcptracerSkel<'_>, programs: &[Program], outlet: &Outlet) -> Losses {
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
    Losses {
        ring_full: counter(tt_counter::TT_RING_FULL),
        map_full: counter(tt_counter::TT_MAP_FULL),
        untracked: counter(tt_counter::TT_UNTRACKED),
        queue_full: outlet.queue_full,
        undecodable: outlet.undecodable.load(Ordering::Relaxed),
        skipped_runs: programs.iter().map(Program::skipped_runs).sum(),
        cgroups: counter(tt_counter::TT_CGROUPS) + outlet.lost_cgroups,
    }
}

/// Answers who has asked for a flush, once all is said. What waits in the outlet has to be flushed before.
fn answer(asks: &mut Asks, skel: &TcptracerSkel<'_>, report: &mut LossReport, outlet: &mut Outlet) {
    let Some(number) = asks.open() else {
        return;
    };
    // A record that a program is still writing holds back those behind it.
    if is_ready(skel.maps.events.as_fd(), &[], Some(Duration::ZERO)) {
        return;
    }
    report.look(skel, outlet);
    if report.is_told && (outlet.consumer)(Message::Flushed(number)).is_ok() {
        asks.answer(number);
    }
}

/// The life of the ring thread after the start.
fn drain_until_stopped(
    mut asks: Asks,
    skel: &mut TcptracerSkel<'_>,
    ring: &RingBuffer<'_>,
    mut hooks: Hooks,
    mut report: LossReport,
    outlet: &RefCell<Outlet>,
) -> Losses {
    loop {
        let drained = ring.consume_raw() > 0;
        let mut out = outlet.borrow_mut();
        out.flush();
        hooks.look_for_io_uring(skel, &mut out);
        hooks.follow(skel, &asks, &mut out);
        if drained {
            report.events_came();
        }
        report.look_if_due(skel, &mut out);
        answer(&mut asks, skel, &mut report, &mut out);
        if hooks.attachment.is_attached() {
            report.hooks_are_attached();
        }
        drop(out);
        if drained || asks.open().is_some() || hooks.open(&asks).is_some() {
            if is_ready(asks.as_fd(), &[], Some(DRAIN_INTERVAL)) && asks.take() {
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
            && is_ready(asks.as_fd(), &[skel.maps.events.as_fd()], report.due_in())
            && asks.take()
        {
            break;
        }
        set_parked(skel, false);
    }
    drop(hooks);
    ring.consume_raw();
    let mut out = outlet.borrow_mut();
    out.flush();
    report.look(skel, &mut out)
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
