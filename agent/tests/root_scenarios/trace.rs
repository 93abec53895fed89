//! A tracer under test: what it said, compared with all that it should have said.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tcptracer::bpf::{Config, Demand, Filter, Message, Plan, Tracer};
use tcptracer_event::{CgroupChange, Event, Kind, Losses, Reason, Role, Source};
use tcptracer_testing::{Actor, DEADLINE, Netns};

/// A running tracer and what it has said so far.
pub struct Trace {
    tracer: Tracer,
    messages: Receiver<Message>,
    said: Said,
}

/// What a tracer said; all of it, once it is stopped.
#[derive(Default)]
pub struct Said {
    pub events: Vec<Event>,
    /// Cgroups that came and went, and how many events had been said before.
    pub cgroups: Vec<(CgroupChange, usize)>,
    pub losses: Losses,
    /// The last ask for a flush that was answered, and the last for hooks.
    flushed: u64,
    hooks: u64,
}

impl Trace {
    /// Traces one network namespace, so that the rest of the host cannot interfere.
    #[track_caller]
    pub fn of(netns: &Netns) -> Self {
        Self::with(Config {
            filter: of(netns),
            ..Config::default()
        })
    }

    /// The same, with failed connects.
    #[track_caller]
    pub fn with_failures_of(netns: &Netns) -> Self {
        Self::with(Config {
            filter: of(netns),
            failed: true,
            ..Config::default()
        })
    }

    /// The same, with hooks that are attached for connections and may be detached.
    #[track_caller]
    pub fn on_demand_of(netns: &Netns) -> Self {
        let mut trace = Self::with(Config {
            filter: of(netns),
            failed: true,
            on_demand: Some(Demand::Nothing),
            ..Config::default()
        });
        trace.attach(Demand::Connections);
        trace
    }

    #[track_caller]
    pub fn with(config: Config) -> Self {
        Self::start(config).unwrap_or_else(|e| panic!("the tracer does not start: {e:#}"))
    }

    /// Where the kernel may not allow what is asked for.
    pub fn start(config: Config) -> Result<Self> {
        let (tracer, messages) = match config.cgroups {
            None => Tracer::start(config)?,
            // Those of the whole host are reported: others may make so many, before a test reads, that a queue with a limit
            // has no room for its own.
            Some(_) => {
                let (sender, messages) = mpsc::channel();
                let consumer = move |message| {
                    let _ = sender.send(message);
                    Ok(())
                };
                (Tracer::start_with(config, Box::new(consumer))?, messages)
            }
        };
        Ok(Self {
            tracer,
            messages,
            said: Said::default(),
        })
    }

    /// Why the program of a hook is not attached, if it is loaded.
    pub fn why_not_attached(&self, hook: &str) -> Option<String> {
        let programs = self.tracer.programs();
        let program = programs.iter().find(|p| p.hook() == hook)?;
        program.why_not_attached().map(Into::into)
    }

    /// What is open according to the tracer's table.
    pub fn connections(&self) -> Vec<Event> {
        self.tracer
            .connections()
            .list()
            .expect("the table can be read")
    }

    /// The filter maps are about to get entries.
    pub fn grow(&self) {
        let counted = self.tracer.generation().grow();
        counted.expect("the generation can be written");
    }

    /// The filter maps have been changed.
    pub fn changed(&self) {
        let counted = self.tracer.generation().changed();
        counted.expect("the generation can be written");
    }

    /// Later cgroups than this one pass.
    pub fn decide(&self, last: u64) {
        let decided = self.tracer.generation().decide(last);
        decided.expect("the generation can be written");
    }

    /// Has what is open followed of whom the filter maps select.
    pub fn seed(&self) {
        let seeded = self.tracer.seeder().seed();
        seeded.expect("what is open can be looked for");
    }

    /// What the tracer found it can do.
    pub fn plan(&self) -> Plan {
        *self.tracer.plan()
    }

    /// Waits until there is an event that `matches`.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, matches: impl Fn(&Event) -> bool) -> Event {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(event) = self.said.events.iter().find(|e| matches(e)) {
                return *event;
            }
            self.receive(what, deadline);
        }
    }

    #[track_caller]
    fn receive(&mut self, what: &str, deadline: Instant) {
        if let Err(e) = self.try_receive(deadline) {
            panic!("waiting for {what}: {e}");
        }
    }

    fn try_receive(&mut self, deadline: Instant) -> Result<(), RecvTimeoutError> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.said.take(self.messages.recv_timeout(left)?);
        Ok(())
    }

    /// Waits until it has said that so many connections had no room.
    #[track_caller]
    pub fn wait_for_map_full(&mut self, count: u64) {
        let deadline = Instant::now() + DEADLINE;
        while self.said.losses.map_full < count {
            self.receive("connections without room", deadline);
        }
    }

    /// Waits until there are `count` events that match, as long as more of them keep coming, and returns them.
    #[track_caller]
    pub fn wait_for_all(
        &mut self,
        what: &str,
        count: usize,
        matches: impl Fn(&Event) -> bool,
    ) -> Vec<Event> {
        let (mut most, mut deadline) = (0, Instant::now() + DEADLINE);
        loop {
            let found: Vec<_> = self.said.events.iter().filter(|e| matches(e)).collect();
            if found.len() >= count {
                return found.into_iter().copied().collect();
            }
            if found.len() > most {
                (most, deadline) = (found.len(), Instant::now() + DEADLINE);
            }
            self.receive(what, deadline);
        }
    }

    /// There was nothing but so many events, and nothing was lost.
    #[track_caller]
    pub fn said_no_more_than(self, count: usize) {
        let said = self.stop_after(count);
        assert!(said.events.len() == count, "{:#?}", &said.events[count..]);
        said.lost_nothing();
    }

    /// What it has said by the answer to an ask for a flush.
    #[track_caller]
    pub fn flush(&mut self) -> &Said {
        let asked = self.tracer.control().flush();
        let deadline = Instant::now() + DEADLINE;
        while self.said.flushed < asked {
            self.receive("a flush", deadline);
        }
        &self.said
    }

    /// Has what this takes attached, and nothing else; returns how long that takes.
    #[track_caller]
    pub fn attach(&mut self, demand: Demand) -> Duration {
        let start = Instant::now();
        let asked = self.tracer.control().attach(demand);
        while self.said.hooks < asked {
            self.receive("the hooks", start + DEADLINE);
        }
        start.elapsed()
    }

    /// Waits for `count` events, as long as some keep coming; then stops, and takes what is said
    /// until the end.
    #[track_caller]
    pub fn stop_after(self, count: usize) -> Said {
        self.stop_after_silence(count, DEADLINE)
    }

    /// As [`Self::stop_after`], and stops also if nothing has come for so long.
    #[track_caller]
    pub fn stop_after_silence(mut self, count: usize, silence: Duration) -> Said {
        while self.said.events.len() < count && self.try_receive(Instant::now() + silence).is_ok() {
        }
        let losses = self.tracer.stop();
        let mut said = self.said;
        self.messages.iter().for_each(|message| said.take(message));
        said.losses = losses;
        said.check_lives();
        said
    }

    /// The end of most tests: exactly these events, nothing else, nothing lost.
    #[track_caller]
    pub fn said_exactly(self, wanted: &[Want]) -> Vec<Event> {
        let said = self.stop_after(wanted.len());
        same(said.events.iter().map(Want::from), wanted.to_vec());
        said.lost_nothing();
        said.events
    }
}

/// That these are the same events, in any order.
#[track_caller]
pub fn same(got: impl Iterator<Item = Want>, wanted: Vec<Want>) {
    same_but_for(0, got, wanted);
}

/// The same, except for at most so many that are missing or too many.
#[track_caller]
pub fn same_but_for(limit: u64, got: impl Iterator<Item = Want>, mut wanted: Vec<Want>) {
    let mut differences = Vec::new();
    for want in got {
        match wanted.iter().position(|w| *w == want) {
            Some(at) => drop(wanted.swap_remove(at)),
            None => differences.push(format!("  extra   {want:?}")),
        }
    }
    let missing = wanted.iter().map(|want| format!("  missing {want:?}"));
    differences.extend(missing);
    assert!(
        differences.len() as u64 <= limit,
        "not what happened:\n{}",
        differences.join("\n")
    );
}

/// Selects a network namespace.
pub fn of(netns: &Netns) -> Filter {
    Filter {
        netns: NonZeroU32::new(
            netns
                .inode
                .try_into()
                .expect("inodes of namespaces are short"),
        ),
        ..Filter::default()
    }
}

impl Said {
    fn take(&mut self, message: Message) {
        match message {
            Message::Events(batch) => self.events.extend(batch),
            Message::Cgroups(changes) => {
                let before = self.events.len();
                let changes = changes.into_iter().map(|change| (change, before));
                self.cgroups.extend(changes);
            }
            Message::Lost(losses) => self.losses = losses,
            Message::Lacks(what, why) => panic!("{what}: {why}"),
            Message::Hooks(_, Err(why)) => panic!("{why}"),
            Message::Hooks(asked, Ok(())) => self.hooks = asked,
            Message::Flushed(asked) => self.flushed = asked,
        }
    }

    #[track_caller]
    pub fn lost_nothing(&self) {
        assert!(
            self.losses
                == Losses {
                    skipped_runs: self.losses.skipped_runs,
                    ..Losses::default()
                },
            "losses: {:?}",
            self.losses
        );
    }

    /// How many events of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.events.iter().filter(|e| e.kind == kind).count()
    }

    /// What holds for every connection, whatever happened to it.
    #[track_caller]
    fn check_lives(&self) {
        let mut lives: HashMap<_, Vec<&Event>> = HashMap::new();
        for event in &self.events {
            lives.entry(event.id).or_default().push(event);
        }
        for (id, life) in lives {
            check_life(&life).unwrap_or_else(|e| panic!("connection {id}: {e}: {life:#?}"));
        }
    }
}

fn check_life(life: &[&Event]) -> Result<()> {
    let opening = |k: Kind| matches!(k, Kind::Connect | Kind::Accept | Kind::Existing);
    ensure!(
        life.iter().filter(|e| opening(e.kind)).count() <= 1,
        "opened twice"
    );
    ensure!(
        life.iter().filter(|e| !opening(e.kind)).count() <= 1,
        "ended twice"
    );
    if let [open, end] = life {
        ensure!(opening(open.kind), "ended before it was opened");
        ensure!(end.kind == Kind::Close, "failed after it was opened");
        // What was reset in the queue had ended when it was accepted.
        ensure!(
            open.time <= end.time || end.accepted > Some(end.time),
            "time runs backwards"
        );
        ensure!(
            (open.owner, open.source, open.role) == (end.owner, end.source, end.role),
            "changed its owner"
        );
        ensure!(
            (open.local, open.remote, open.netns) == (end.local, end.remote, end.netns),
            "changed its addresses"
        );
        ensure!(
            (open.syn, open.established, open.accepted) == (end.syn, end.established, end.accepted),
            "changed its past"
        );
    }
    let end = life.last().context("no events")?;
    let times = [end.syn, end.established, end.first_fin, Some(end.time)];
    let known: Vec<_> = times.into_iter().flatten().collect();
    ensure!(known.is_sorted(), "its times are out of order: {known:?}");
    Ok(())
}

/// An event that has to come: all of it that does not depend on the moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Want {
    kind: Kind,
    pid: u32,
    comm: String,
    source: Source,
    role: Role,
    local: SocketAddr,
    remote: SocketAddr,
    closer: Option<(u32, String)>,
    reason: Reason,
    errno: u16,
    bytes: Option<(u64, u64)>,
}

impl Want {
    /// `actor` connected from `local` to `remote`.
    pub fn connect(actor: &Actor, local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            kind: Kind::Connect,
            pid: actor.pid(),
            comm: actor.comm.clone(),
            source: Source::Connect,
            role: Role::Client,
            local,
            remote,
            closer: None,
            reason: Reason::Unknown,
            errno: 0,
            bytes: None,
        }
    }

    /// `actor` accepted at `local` from `remote`.
    pub fn accept(actor: &Actor, local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            kind: Kind::Accept,
            source: Source::Accept,
            role: Role::Server,
            ..Self::connect(actor, local, remote)
        }
    }

    /// The end of what this opened, closed by its owner, with no bytes in either direction.
    pub fn close(&self, reason: Reason) -> Self {
        Self {
            kind: Kind::Close,
            closer: Some((self.pid, self.comm.clone())),
            reason,
            bytes: Some((0, 0)),
            ..self.clone()
        }
    }

    /// All of an ordinary connection: opened, and closed by the owner of each end.
    pub fn life(connect: &Self, accept: &Self, reasons: [Reason; 2]) -> [Self; 4] {
        [
            connect.clone(),
            accept.clone(),
            connect.close(reasons[0]),
            accept.close(reasons[1]),
        ]
    }

    /// This connect failed; nobody closed it.
    pub fn failed(&self, reason: Reason, errno: u16) -> Self {
        Self {
            kind: Kind::Failed,
            reason,
            errno,
            ..self.clone()
        }
    }

    /// A connect that failed because there was no route. The socket had no local address yet.
    pub fn without_a_route(client: &Actor, to: SocketAddr) -> Self {
        let nowhere = SocketAddr::from(([0; 4], 0));
        Self::connect(client, nowhere, to).failed(Reason::Unknown, 101)
    }

    /// As the snapshot sees it.
    pub fn snapshot(&self) -> Self {
        Self {
            source: Source::Snapshot,
            ..self.clone()
        }
    }

    pub fn existing(&self) -> Self {
        Self {
            kind: Kind::Existing,
            ..self.snapshot()
        }
    }

    /// As the table of connections has it.
    pub fn uncounted(&self) -> Self {
        Self {
            bytes: None,
            ..self.clone()
        }
    }

    pub fn by(&self, pid: u32, comm: &str) -> Self {
        Self {
            pid,
            comm: comm.into(),
            ..self.clone()
        }
    }

    pub fn source(&self, source: Source) -> Self {
        Self {
            source,
            ..self.clone()
        }
    }

    pub fn closer(&self, pid: u32, comm: &str) -> Self {
        Self {
            closer: Some((pid, comm.into())),
            ..self.clone()
        }
    }

    pub fn no_closer(&self) -> Self {
        Self {
            closer: None,
            ..self.clone()
        }
    }

    pub fn reason(&self, reason: Reason) -> Self {
        Self {
            reason,
            ..self.clone()
        }
    }

    pub fn errno(&self, errno: i32) -> Self {
        Self {
            errno: errno as u16,
            ..self.clone()
        }
    }

    pub fn bytes(&self, sent: u64, received: u64) -> Self {
        Self {
            bytes: Some((sent, received)),
            ..self.clone()
        }
    }
}

impl From<&Event> for Want {
    fn from(event: &Event) -> Self {
        Self {
            kind: event.kind,
            pid: event.owner.pid,
            comm: event.owner.comm.to_string(),
            source: event.source,
            role: event.role,
            local: event.local,
            remote: event.remote,
            closer: event.closer.map(|c| (c.pid, c.comm.to_string())),
            reason: event.reason,
            errno: event.errno,
            bytes: event.counters.map(|c| (c.bytes_sent, c.bytes_received)),
        }
    }
}
