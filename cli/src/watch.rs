//! Watching: sessions with all nodes that are asked, merged into one output.
//!
//! One task owns the output, the order and the report. Sessions wait when it is slow; then the agents drop what has no
//! room, and say so.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use tcptracer_client::merge::{Limits, Merge, SourceId};
use tcptracer_client::request::Span;
use tcptracer_client::session::{self, Heard, Meaning, News, Question};
use tcptracer_proto::EventBytes;
use tcptracer_proto::v1::watch_request::History;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::event::{Owners, Row};
use crate::exit::Code;
use crate::plan::Plan;
use crate::render::Output;
use crate::report::Report;
use crate::way::{Target, Way};

/// Events that wait for other nodes' earlier ones, and how long.
const LIMITS: Limits = Limits {
    items: 100_000,
    delay: Duration::from_millis(250),
};
/// How long all nodes may take to show what they remember, before it is shown without the rest.
const GATHER: Duration = Duration::from_secs(10);
/// At the end, how long the agents that have not ended their streams may send neither events nor losses before they are
/// given up, and how long they may take in all. Time in which the output is not read does not count.
const LAST_WORDS: Duration = Duration::from_secs(5);
const FAREWELL: Duration = Duration::from_secs(60);
/// Messages of all sessions that wait to be taken.
const QUEUE: usize = 64;

/// What a watch needs to know.
pub struct Watching {
    /// What to ask.
    pub question: Question<Way>,
    /// Whom.
    pub plans: watch::Receiver<Plan>,
    /// There is one agent, which was given: if it cannot be reached at first, that is an error.
    pub single: bool,
    /// Ends it: what happens from then on is not shown any more.
    pub end: CancellationToken,
}

/// Runs until everything that happened before the end has been shown or reported.
pub async fn run(watching: Watching, output: Output, report: Report) -> Result<Code> {
    let (to, mut heard) = mpsc::channel(QUEUE);
    let span = watching.question.span.clone();
    let mut plans = watching.plans.clone();
    let end = watching.end.clone();
    let mut state = State::new(watching, output, report, to);
    if let Some(past) = span.past {
        let last = match past {
            History::Last(count) => Some(count as usize),
            History::Since(_) | History::Resume(_) => None,
        };
        state.merge.gather(Instant::now() + GATHER, last);
    }
    let changes = span.follow && !state.watching.single;
    let plan = plans.borrow_and_update().clone();
    state.follow(&plan);

    while !state.is_over(&span) {
        let deadline = state.merge.deadline();
        let patience = state.ending.map(Ending::patience);
        tokio::select! {
            // What has arrived comes before what the clock says: to write it may have taken long.
            biased;
            () = end.cancelled(), if patience.is_none() => state.ending = Some(Ending::now()),
            changed = plans.changed(), if changes && patience.is_none() => {
                changed.context("the cluster is not followed any more")?;
                let plan = plans.borrow_and_update().clone();
                state.follow(&plan);
            }
            Some(heard) = heard.recv() => state.take(heard)?,
            () = until(patience) => break,
            () = until(deadline) => {}
        }
        state.write()?;
        // An agent that always has something to say does not keep us either.
        if state
            .ending
            .is_some_and(|ending| ending.latest <= Instant::now())
        {
            break;
        }
    }
    // Of sessions that have been ended since, and of those that are given up.
    while let Ok(heard) = heard.try_recv() {
        state.take(heard)?;
    }
    state.finish()
}

/// For ever, if there is no time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// By when those are given up that have not ended their streams.
#[derive(Clone, Copy, Debug)]
struct Ending {
    /// Unless events or losses come.
    quiet: Instant,
    /// Whatever comes.
    latest: Instant,
}

impl Ending {
    fn now() -> Self {
        let now = Instant::now();
        Self {
            quiet: now + LAST_WORDS,
            latest: now + FAREWELL,
        }
    }

    fn patience(self) -> Instant {
        self.quiet.min(self.latest)
    }

    fn put_off(&mut self, time: Duration) {
        self.quiet += time;
        self.latest += time;
    }
}

struct State {
    watching: Watching,
    output: Output,
    to: mpsc::Sender<Heard<Row>>,
    merge: Merge<Box<Row>>,
    report: Report,
    /// Nodes that refuse, and why: held until it is known whether others do what they do not.
    refused: Vec<(String, Error)>,
    /// Node → its session.
    sessions: HashMap<String, Session>,
    started: SourceId,
    /// The watch is ending; the sessions know it too.
    ending: Option<Ending>,
    /// Something was shown.
    shown: bool,
}

struct Session {
    id: SourceId,
    target: watch::Sender<Target>,
    task: AbortHandle,
    /// As the agent calls it.
    node: String,
    /// What it had to say at first it has said, if anything.
    caught_up: bool,
    /// Nothing more is to be expected.
    over: bool,
}

impl Session {
    fn end(&mut self, merge: &mut Merge<Box<Row>>) {
        merge.remove(self.id);
        self.caught_up = true;
        self.over = true;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn new(
        watching: Watching,
        output: Output,
        report: Report,
        to: mpsc::Sender<Heard<Row>>,
    ) -> Self {
        Self {
            watching,
            output,
            to,
            merge: Merge::new(LIMITS),
            report,
            refused: Vec::new(),
            sessions: HashMap::new(),
            started: 0,
            ending: None,
            shown: false,
        }
    }

    /// Starts and ends sessions, so that those that are asked are those of the plan.
    fn follow(&mut self, plan: &Plan) {
        self.report.planned(plan);
        let (merge, report) = (&mut self.merge, &mut self.report);
        self.sessions.retain(|node, session| {
            // What the agent of a node does not say, it may say later: the session tries again.
            let stays = plan.ask.contains_key(node) || plan.without_agent.contains_key(node);
            if !stays {
                merge.remove(session.id);
                report.dropped(&session.node);
            }
            stays
        });
        for (node, target) in &plan.ask {
            match self.sessions.get(node) {
                Some(session) => {
                    session.target.send_if_modified(|current| {
                        let changed = current != target;
                        current.clone_from(target);
                        changed
                    });
                }
                None => self.start(node.clone(), target.clone()),
            }
        }
        self.look_whether_all_have_caught_up();
    }

    fn start(&mut self, node: String, target: Target) {
        let id = self.started;
        self.started += 1;
        let (to_target, target) = watch::channel(target);
        let question = self.watching.question.clone();
        let end = self.watching.end.clone();
        let mut owners = Owners::default();
        let row = move |node: &str, event: EventBytes<'_>| Row::of_event(node, event, &mut owners);
        let run = session::run(id, question, target, row, self.to.clone(), end);
        self.merge.add(id);
        let session = Session {
            id,
            target: to_target,
            task: tokio::spawn(run).abort_handle(),
            node: node.clone(),
            caught_up: false,
            over: false,
        };
        self.sessions.insert(node, session);
    }

    fn take(&mut self, Heard { source, news }: Heard<Row>) -> Result<()> {
        if let (Some(ending), News::Events(_) | News::Lost { .. }) = (&mut self.ending, &news) {
            // There may be more.
            ending.quiet = Instant::now() + LAST_WORDS;
        }
        // What a session has said that was ended since is shown, and what it lost; of the rest nothing is left to do.
        let session = self.sessions.values_mut().find(|s| s.id == source);
        let Some(session) = session else {
            match news {
                News::Events(rows) => {
                    self.push(source, rows);
                    self.merge.remove(source);
                }
                News::Lost { node, lost } => self.report.lost(&node, lost),
                // That tracing begins is nothing to tell where nobody is asked any more.
                News::Paused {
                    node,
                    pause,
                    meaning: Meaning::Gap,
                } => self.report.paused(&node, pause, Meaning::Gap),
                _ => {}
            }
            return Ok(());
        };
        match news {
            News::Events(rows) => {
                self.push(source, rows);
                return Ok(());
            }
            News::Connected { node, restarted } => {
                session.over = false;
                session.node = node;
                self.merge.add(source);
                self.report.connected(&session.node, restarted);
            }
            News::Lost { node, lost } => self.report.lost(&node, lost),
            News::Paused {
                node,
                pause,
                meaning,
            } => self.report.paused(&node, pause, meaning),
            News::Status(status) => {
                self.report.status(&session.node, &status);
                if status.live {
                    self.report.caught_up(&session.node);
                }
            }
            News::CaughtUp => session.caught_up = true,
            News::Broken(e) if self.watching.single && !self.report.is_heard() => {
                let at = &self.watching.question.dialer.way;
                return Err(anyhow::Error::new(e).context(format!("no agent answers at {at}")));
            }
            News::Broken(e) if self.watching.question.span.follow && self.ending.is_none() => {
                self.report.broken(&session.node, &e.into());
                // The past that it remembers comes later, if at all.
                session.caught_up = true;
                self.merge.remove(source);
            }
            News::Broken(e) => {
                self.report.failed(&session.node, &e.into());
                session.end(&mut self.merge);
            }
            News::Refused(e) => {
                self.refused.push((session.node.clone(), e.into()));
                session.end(&mut self.merge);
            }
            News::Finished => session.end(&mut self.merge),
        }
        self.look_who_refuses()?;
        self.look_whether_all_have_caught_up();
        Ok(())
    }

    fn push(&mut self, source: SourceId, rows: Vec<Row>) {
        let now = Instant::now();
        for row in rows {
            self.merge.push(source, row.record.time, Box::new(row), now);
        }
    }

    fn look_whether_all_have_caught_up(&mut self) {
        if self.sessions.values().all(|s| s.caught_up) {
            self.report.all_caught_up();
            if self.merge.is_gathering() {
                self.merge.caught_up();
            }
        }
    }

    /// What all refuse is an error; who refuses what others do is told.
    fn look_who_refuses(&mut self) -> Result<()> {
        if self.report.is_heard() {
            for (node, e) in self.refused.drain(..) {
                self.report.failed(&node, &e);
            }
        } else if self.sessions.values().all(|s| s.caught_up) {
            let first = self.refused.drain(..).next();
            return first.map_or(Ok(()), |(_, e)| Err(e));
        }
        Ok(())
    }

    /// Nothing more is to come. A cluster that is followed may have other agents later, until the watch ends.
    fn is_over(&self, span: &Span) -> bool {
        let ends = !span.follow || self.watching.single || self.ending.is_some();
        ends && self.sessions.values().all(|s| s.over)
    }

    fn write(&mut self) -> Result<()> {
        let now = Instant::now();
        while let Some(row) = self.merge.pop(now) {
            self.show(&row)?;
        }
        self.output.flush()?;
        if let Some(ending) = &mut self.ending {
            ending.put_off(now.elapsed());
        }
        Ok(())
    }

    fn show(&mut self, row: &Row) -> Result<()> {
        self.shown = true;
        self.output.row(row)
    }

    /// Reports who has not ended its stream.
    fn give_up(&mut self) {
        let open = self.sessions.values().filter(|s| !s.over);
        let mut nodes: Vec<_> = open.map(|s| s.node.as_str()).collect();
        nodes.sort_unstable();
        for node in nodes {
            let why = anyhow!("it did not end its stream in time");
            self.report.failed(node, &why);
        }
    }

    fn finish(mut self) -> Result<Code> {
        self.give_up();
        self.sessions.clear();
        while let Some(row) = self.merge.pop_anyway() {
            self.show(&row)?;
        }
        self.output.flush()?;
        // Nobody has said yet that they do it.
        if let Some((_, e)) = self.refused.pop() {
            return Err(e);
        }
        if !self.watching.question.span.follow && !self.shown {
            self.report.nothing_remembered();
        }
        Ok(self.report.summary())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tcptracer_client::request::Filters;
    use tcptracer_proto::v1::{LossSource, Lost, Paused};

    use super::*;
    use crate::args::Args;
    use crate::report::Subject;
    use crate::request::span;
    use tcptracer_client::dial::Dialer;

    /// Of a watch whose only node has been heard and is not asked any more.
    fn dropped() -> State {
        let line = ["kubectl-tcptracer", "--server", "127.0.0.1:1", "-o", "name"];
        let args = Args::try_parse_from(line).expect("valid");
        let asked = Plan {
            ask: [("n1".into(), Target::Server)].into(),
            ..Plan::default()
        };
        let way = Way::Server {
            address: args.agents.server.clone().expect("an address"),
            tls: None,
        };
        let watching = Watching {
            question: Question {
                dialer: Dialer { way, timeout: None },
                filters: Filters::default(),
                span: span(&args.span),
            },
            plans: watch::channel(asked.clone()).1,
            single: false,
            end: CancellationToken::new(),
        };
        let output = Output::start(&args.output, false).expect("stdout");
        let (to, _heard) = mpsc::channel(QUEUE);
        let mut state = State::new(watching, output, Report::new(Subject::default()), to);

        state.follow(&asked);
        let connected = News::Connected {
            node: "n1".into(),
            restarted: false,
        };
        state.take(says(connected)).expect("taken");
        assert_eq!(state.report.code(), Code::Complete);
        state.follow(&Plan::default());
        state
    }

    fn says(news: News<Row>) -> Heard<Row> {
        Heard { source: 0, news }
    }

    #[tokio::test]
    async fn what_was_lost_where_nobody_is_asked_any_more_is_told() {
        let lost = News::Lost {
            node: "n1".into(),
            lost: Lost {
                source: LossSource::Ring.into(),
                count: 3,
                position: None,
            },
        };
        let mut state = dropped();
        state.take(says(lost)).expect("taken");
        assert_eq!(state.finish().expect("shown"), Code::Incomplete);
    }

    #[tokio::test]
    async fn what_was_not_traced_there_is_told_if_it_was_asked_for() {
        for (meaning, code) in [
            (Meaning::Gap, Code::Incomplete),
            (Meaning::Start, Code::Complete),
        ] {
            let paused = News::Paused {
                node: "n1".into(),
                pause: Paused::default(),
                meaning,
            };
            let mut state = dropped();
            state.take(says(paused)).expect("taken");
            assert_eq!(state.finish().expect("shown"), code);
        }
    }
}
