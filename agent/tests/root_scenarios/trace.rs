//! A tracer under test: what it said, compared with all that it should have said.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use tcptracer::bpf::{Config, Filter, Message, Plan, Tracer};
use tcptracer::event::{CgroupChange, Event, Kind, Losses, Reason, Role, Source};

use crate::actor::Actor;
use crate::world::{NetNs, PATIENCE};

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
}

impl Trace {
    /// Traces one network namespace, so that the rest of the host cannot interfere.
    pub fn of(netns: &NetNs) -> Result<Self> {
        Self::with(Config {
            filter: of(netns)?,
            ..Config::default()
        })
    }

    pub fn with(config: Config) -> Result<Self> {
        let (tracer, messages) = Tracer::start(config)?;
        Ok(Self {
            tracer,
            messages,
            said: Said::default(),
        })
    }

    /// Why the program of a hook is not attached, if it is loaded.
    pub fn why_not_attached(&self, hook: &str) -> Option<String> {
        let programs = self.tracer.programs();
        let program = programs.iter().find(|p| p.hook == hook)?;
        program.why_not_attached().map(Into::into)
    }

    /// What the tracer found it can do.
    pub fn plan(&self) -> Plan {
        *self.tracer.plan()
    }

    /// Waits until there is an event that `matches`.
    pub fn wait_for(&mut self, what: &str, matches: impl Fn(&Event) -> bool) -> Result<Event> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(event) = self.said.events.iter().find(|e| matches(e)) {
                return Ok(*event);
            }
            self.receive(deadline)
                .with_context(|| format!("waiting for {what}"))?;
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.messages.recv_timeout(left) {
            Ok(message) => self.said.take(message),
            Err(RecvTimeoutError::Timeout) => bail!("not within {PATIENCE:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the tracer has ended"),
        }
        Ok(())
    }

    /// Waits for `count` events, as long as some keep coming; then stops, and takes what is said
    /// until the end.
    pub fn stop_after(mut self, count: usize) -> Result<Said> {
        while self.said.events.len() < count && self.receive(Instant::now() + PATIENCE).is_ok() {}
        let losses = self.tracer.stop();
        let mut said = self.said;
        self.messages.iter().for_each(|message| said.take(message));
        said.losses = losses;
        said.check_lives()?;
        Ok(said)
    }

    /// The end of most tests: exactly these events, nothing else, nothing lost.
    pub fn said_exactly(self, wanted: &[Want]) -> Result<Vec<Event>> {
        let said = self.stop_after(wanted.len())?;
        same(said.events.iter().map(Want::from), wanted.to_vec())?;
        ensure!(
            said.losses
                == Losses {
                    skipped_runs: said.losses.skipped_runs,
                    ..Losses::default()
                },
            "losses: {:?}",
            said.losses
        );
        Ok(said.events)
    }
}

/// Whether these are the same events, in any order; if not, which make the difference.
pub fn same(got: impl Iterator<Item = Want>, mut wanted: Vec<Want>) -> Result<()> {
    let mut difference = String::new();
    for want in got {
        match wanted.iter().position(|w| *w == want) {
            Some(at) => drop(wanted.swap_remove(at)),
            None => writeln!(difference, "  extra   {want:?}")?,
        }
    }
    for want in wanted {
        writeln!(difference, "  missing {want:?}")?;
    }
    ensure!(difference.is_empty(), "not what happened:\n{difference}");
    Ok(())
}

/// Selects a network namespace.
pub fn of(netns: &NetNs) -> Result<Filter> {
    Ok(Filter {
        netns: Some(netns.inode()?.try_into()?),
        ..Filter::default()
    })
}

impl Said {
    fn take(&mut self, message: Message) {
        match message {
            Message::Events(batch) => self.events.extend(batch),
            Message::Cgroup(change) => self.cgroups.push((change, self.events.len())),
            Message::Lost(losses) => self.losses = losses,
            Message::Lacks(what, why) => panic!("{what}: {why}"),
        }
    }

    /// How many events of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.events.iter().filter(|e| e.kind == kind).count()
    }

    /// What holds for every connection, whatever happened to it.
    fn check_lives(&self) -> Result<()> {
        let mut lives: HashMap<_, Vec<&Event>> = HashMap::new();
        for event in &self.events {
            lives.entry(event.id).or_default().push(event);
        }
        for (id, life) in lives {
            check_life(&life).with_context(|| format!("connection {id}: {life:#?}"))?;
        }
        Ok(())
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
            pid: actor.pid,
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
