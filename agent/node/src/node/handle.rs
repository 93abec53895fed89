//! How the servers ask the node.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use anyhow::{Context, Result};
use tcptracer::bpf::{Connections, Program};
use tcptracer::clock::Clock;
use tcptracer_event::Event;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::filter::Matcher;
use crate::hub::{Past, Subscription};
use crate::identity::{Attribution, Owner};
use crate::report::{ProgramRuns, Report};

/// Lists of connections at a time: a full one is some 20 MB, and is held until its client has read it.
const LISTS: usize = 4;

/// What the servers ask the task for.
#[derive(Debug)]
pub enum Command {
    /// Events, from now on or from the past.
    Subscribe {
        /// By which it can be ended.
        id: Option<String>,
        /// Which ones.
        matcher: Matcher,
        /// What of the past.
        past: Past,
        /// Whether to go on after the past.
        follow: bool,
        /// Where they come.
        reply: oneshot::Sender<Result<Subscription, Refusal>>,
    },
    /// That connections are followed, those that are open included, as long as the lease is held.
    Follow {
        /// Whose.
        matcher: Matcher,
        /// Where the lease comes.
        reply: oneshot::Sender<Result<Lease, CannotAttach>>,
    },
    /// That a subscription ends, with everything that the kernel has reported by now.
    End {
        /// Its id.
        id: String,
        /// Whether there is one. Its own end says when that is done.
        reply: oneshot::Sender<bool>,
    },
    /// Whose processes are, all as of one moment, and how to write times then.
    Name {
        /// Theirs.
        owners: HashSet<Owner>,
        /// Where the answer comes.
        reply: oneshot::Sender<(Clock, HashMap<Owner, Attribution>)>,
    },
    /// How the agent fares.
    Report(oneshot::Sender<Report>),
}

/// As long as it is held, connections are followed.
pub type Lease = Arc<()>;

/// The hooks cannot be attached now, for this reason.
#[derive(Clone, Debug, Error)]
#[error("cannot attach the hooks: {0}")]
pub struct CannotAttach(pub String);

/// Why nobody can subscribe so.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// Somebody else goes by the id.
    Taken,
    /// Nothing can be traced now.
    CannotAttach(CannotAttach),
}

/// The connections that are open.
#[derive(Debug)]
pub struct Listing {
    /// Relates their times to the time of day.
    pub clock: Clock,
    /// Their state, and whose they are, in the order in which they were opened.
    pub connections: Vec<(Event, Attribution)>,
    /// There are few lists at a time.
    _turn: OwnedSemaphorePermit,
}

/// Asks the node's task what it alone knows, and the kernel what it knows, so that the task need not.
///
/// A question costs the task some microseconds; what it answers is never behind what subscribers were told.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    connections: Arc<Connections>,
    programs: Arc<[Program]>,
    /// Who lists holds a copy of the kernel's table.
    lists: Arc<Semaphore>,
}

impl Handle {
    /// `commands` go to the task.
    pub fn new(
        commands: mpsc::Sender<Command>,
        connections: Connections,
        programs: Arc<[Program]>,
    ) -> Self {
        Self {
            commands,
            connections: Arc::new(connections),
            programs,
            lists: Arc::new(Semaphore::new(LISTS)),
        }
    }

    /// How the agent fares; `None` if the task does not run any more.
    pub async fn report(&self) -> Option<Report> {
        self.ask(Command::Report).await
    }

    /// Events, and what is asked for of the past; `None` if the task does not run any more.
    pub async fn subscribe(
        &self,
        id: Option<String>,
        matcher: Matcher,
        past: Past,
        follow: bool,
    ) -> Option<Result<Subscription, Refusal>> {
        self.ask(|reply| Command::Subscribe {
            id,
            matcher,
            past,
            follow,
            reply,
        })
        .await
    }

    /// Ends the subscription of this id in order; says whether there is one. `None` if the task does not run any more.
    pub async fn end(&self, id: String) -> Option<bool> {
        self.ask(|reply| Command::End { id, reply }).await
    }

    /// The connections that are open; `None` if the task does not run any more. Waits while too many are held.
    pub async fn list(&self, matcher: Matcher) -> Result<Option<Listing>> {
        let turn = Arc::clone(&self.lists).acquire_owned().await?;
        let whose = matcher.clone();
        let follow = |reply| Command::Follow {
            matcher: whose,
            reply,
        };
        let Some(followed) = self.ask(follow).await else {
            return Ok(None);
        };
        let lease = followed?;
        let handle = self.clone();
        let list = move || {
            let listing = handle.list_blocking(&matcher, turn);
            drop(lease);
            listing
        };
        tokio::task::spawn_blocking(list)
            .await
            .context("the list has panicked")?
    }

    /// The task names the owners, all at one moment, which are few; the rest is done here.
    fn list_blocking(
        &self,
        matcher: &Matcher,
        turn: OwnedSemaphorePermit,
    ) -> Result<Option<Listing>> {
        let mut connections = self.connections.list()?;
        let owners: HashSet<Owner> = connections.iter().map(Owner::of).collect();
        let (reply, answer) = oneshot::channel();
        // What cannot be sent is not answered either.
        let _ = self.commands.blocking_send(Command::Name { owners, reply });
        let Ok((clock, names)) = answer.blocking_recv() else {
            return Ok(None);
        };

        let judged: HashMap<Owner, _> = names
            .into_iter()
            .map(|(owner, who)| (owner, (matcher.judge(&who), who)))
            .collect();
        connections.sort_by_key(|event| (event.established, event.id));
        let passing = connections.into_iter().filter_map(|event| {
            let (verdicts, who) = judged.get(&Owner::of(&event))?;
            let passes = matcher.passes_connection(*verdicts, &event);
            passes.then(|| (event, who.clone()))
        });
        Ok(Some(Listing {
            clock,
            connections: passing.collect(),
            _turn: turn,
        }))
    }

    /// The programs in the kernel.
    pub fn programs(&self) -> &[Program] {
        &self.programs
    }

    /// What the programs have cost. Reads files of the kernel's.
    pub fn program_runs(&self) -> Vec<ProgramRuns> {
        let runs = |program: &Program| {
            let (run_time, runs) = program.run_time();
            ProgramRuns {
                hook: program.hook(),
                run_time,
                runs,
            }
        };
        self.programs.iter().map(runs).collect()
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}
