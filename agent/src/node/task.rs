//! The task.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::containers::Containers;
use super::held::Held;
use super::selection::{self, Pair, PinnedFilterSet};
use super::{Command, Owner, Report, Since};
use crate::bpf::{Message, Outcome, PinDir};
use crate::clock::{Clock, monotonic_now};
use crate::event::{CgroupChange, Event, Losses, Nanos};
use crate::filter::Matcher;
use crate::hub::{Hub, Loss, LossSource, Past, Published, Status};
use crate::identity::{Attribution, ContainerKey, Index};
use crate::kube::Update;
use crate::metrics::Metrics;
use crate::server::convert;

/// Between two looks after subscribers, if there are any.
const CARE: Duration = Duration::from_millis(250);

/// Between two looks for what can be forgotten.
const FORGET: Duration = Duration::from_secs(5);

/// Between two looks at what the filter maps really hold, and which cgroups there really are.
const AUDIT: Duration = Duration::from_secs(30);

/// Between two questions for the name of a young container. The kubelet does not report its id at once, and tells nobody.
const ASK: Duration = Duration::from_secs(1);

/// A container that has no name yet at this age has to wait for the source's own time: a sandbox never gets one.
const YOUNG: Duration = Duration::from_secs(5);

/// What the task works with, all of it its own.
pub struct Config {
    /// What is known of containers and pods: as of a first scan.
    pub index: Index,
    /// Who looks at the file systems.
    pub containers: Containers,
    /// Selections for other tools.
    pub sets: Vec<PinnedFilterSet>,
    /// The maps by which the kernel filters for subscribers.
    pub maps: Pair,
    /// The folder of all these maps. After them: it is removed last.
    pub pins: PinDir,
    /// Subscribers and history.
    pub hub: Hub,
    /// Where events and losses are counted.
    pub metrics: Arc<Metrics>,
    /// The labels of pods that events carry.
    pub labels: Vec<String>,
    /// What goes unseen.
    pub shortcomings: Vec<String>,
    /// To be notified when a container appears whose pod is not known.
    pub wanted: Arc<Notify>,
    /// Let the events of all pods pass also while nobody subscribes, for the history.
    pub record: Option<Matcher>,
}

/// Where the task hears from others.
pub struct Inputs {
    /// The tracer.
    pub tracer: mpsc::Receiver<Message>,
    /// The source of pods.
    pub pods: mpsc::Receiver<Update>,
    /// The servers.
    pub commands: mpsc::Receiver<Command>,
    /// Ends the task. What the tracer has said by then is still handed out.
    pub stop: CancellationToken,
}

/// The state of the node.
pub struct Node {
    with: Config,
    held: Held,
    clock: Clock,
    status: Status,
    losses: Losses,
    /// What could not be put in the subscribers' maps, and in those of each filter set, as of the last time.
    outcomes: Vec<Outcome>,
    /// What the maps and the subscribers' verdicts are made for: the index, and whether who subscribes
    /// has changed since.
    generation: u64,
    subscribers_changed: bool,
    /// When to look for cgroups whose coming or going was not told.
    rescan: Option<Instant>,
    /// When to ask for the pods again.
    ask: Option<Instant>,
    cared: Instant,
    forgot: Instant,
    audited: Instant,
}

impl Node {
    /// Nothing is handed out yet.
    pub fn new(with: Config) -> Self {
        let now = Instant::now();
        let status = Status {
            shortcomings: with.shortcomings.clone(),
            ..Status::default()
        };
        let mut node = Self {
            held: Held::default(),
            clock: Clock::now(),
            status,
            losses: Losses::default(),
            outcomes: vec![Outcome::default(); 1 + with.sets.len()],
            // Another than the index's: all is to be made.
            generation: u64::MAX,
            subscribers_changed: true,
            rescan: None,
            ask: None,
            cared: now,
            forgot: now,
            audited: now,
            with,
        };
        node.with.hub.set_status(node.status.clone());
        node
    }

    /// Runs until it is stopped or the tracer ends.
    pub async fn run(mut self, mut inputs: Inputs) -> Result<()> {
        let mut has_answered = false;
        loop {
            self.settle();
            let due = self.due();
            // Names before events, and what is wanted before both; but after each question the tracer has its turn,
            // or many questions would have events wait until the queue overflows.
            let may_ask = !has_answered || inputs.tracer.is_empty();
            tokio::select! {
                biased;
                () = inputs.stop.cancelled() => break,
                Some(update) = inputs.pods.recv() => self.pods(update),
                Some(command) = inputs.commands.recv(), if may_ask => {
                    self.command(command);
                    has_answered = true;
                }
                message = inputs.tracer.recv() => match message {
                    Some(message) => {
                        self.tracer(message);
                        has_answered = false;
                    }
                    None => anyhow::bail!("the tracer has ended"),
                },
                () = sleep_until(due.into()) => {}
            }
        }
        // The tracer hands over what is left and closes its end.
        while let Some(message) = inputs.tracer.recv().await {
            self.tracer(message);
        }
        let held = self.held.release_all();
        self.publish(held);
        Ok(())
    }

    /// When to look at the clock next.
    fn due(&self) -> Instant {
        let care = (self.with.hub.subscribers() > 0).then_some(self.cared + CARE);
        let looks = self.with.containers.due();
        let let_go = self.with.index.let_go_due();
        [care, self.held.due(), looks, let_go, self.rescan, self.ask]
            .into_iter()
            .flatten()
            .fold(self.forgot + FORGET, Instant::min)
    }

    // === inputs

    fn tracer(&mut self, message: Message) {
        let now = Instant::now();
        match message {
            Message::Events(events) => self.events(events, now),
            Message::Lost(total) => self.lost(total, now),
            Message::Cgroup(CgroupChange::Made { id, path }) => {
                match self.with.containers.seen_at(id, &path) {
                    Some(path) => self.with.index.cgroup_made(id, path, now),
                    None => self.with.index.is_outside(id),
                }
                self.want_pods(now);
            }
            Message::Cgroup(CgroupChange::Removed { id }) => {
                self.with.index.cgroup_removed(id, now);
            }
            Message::Lacks(what, why) => {
                warn!("{what}: {why}");
                self.status.shortcomings.push(what.to_string());
                self.with.hub.set_status(self.status.clone());
            }
        }
    }

    fn pods(&mut self, update: Update) {
        let now = Instant::now();
        let index = &mut self.with.index;
        match update {
            Update::Replaced(pods) => {
                index.pods_replaced(pods, now);
                self.status.pods_synced = true;
            }
            Update::Applied(pod) => index.pod_applied(pod),
            Update::Deleted(uid) => index.pod_deleted(&uid, now),
            Update::Failed(why) => {
                if self.status.pods_error.replace(why).is_none() {
                    self.with.metrics.count_pod_error();
                }
            }
            Update::Recovered => self.status.pods_error = None,
        }
        self.with.hub.set_status(self.status.clone());
    }

    fn command(&mut self, command: Command) {
        // Who asked and is gone does not need the answer.
        match command {
            Command::Subscribe {
                matcher,
                since,
                follow,
                reply,
            } => {
                let past = match since {
                    Since::Now => Past::None,
                    Since::Last(n) => Past::Last(n),
                    Since::After(position) => Past::After(position),
                    Since::Ago(ago) => {
                        let ago = Nanos::try_from(ago.as_nanos()).unwrap_or(Nanos::MAX);
                        Past::Since(monotonic_now().saturating_sub(ago))
                    }
                };
                let subscription = self.with.hub.subscribe(matcher, past, follow);
                // Once the subscriber hears that it is live, the kernel lets its events pass.
                self.select(Instant::now());
                let _ = reply.send(subscription);
            }
            Command::Name { owners, reply } => {
                let mut clock = self.clock;
                clock.keep_up();
                let name = |owner: Owner| (owner, self.attribute(owner).1);
                let _ = reply.send((clock, owners.into_iter().map(name).collect()));
            }
            Command::Report(reply) => {
                let _ = reply.send(self.report());
            }
        }
    }

    // === events

    fn events(&mut self, events: Vec<Event>, now: Instant) {
        self.clock.keep_up();
        let Config {
            index, containers, ..
        } = &mut self.with;
        let scan = |index: &mut Index| containers.scan_again(index, now);
        let ready = self.held.admit(events, index, now, scan);
        if self.held.due().is_some() {
            self.want_pods(now);
        }
        self.publish(ready);
    }

    /// Whose a process is. The kernel tells of a cgroup before its processes do anything, and the first scan found those
    /// that were there: unless some of it may be lost, what is unknown is nothing of ours.
    fn attribute(&self, owner: Owner) -> (Option<ContainerKey>, Attribution) {
        let index = &self.with.index;
        match owner.whose(index) {
            (None, Attribution::Unknown)
                if self.rescan.is_none() && index.must_be_outside(owner.cgroup) =>
            {
                (None, Attribution::Foreign)
            }
            whose => whose,
        }
    }

    /// Hands events out, under the names that are known now.
    fn publish(&mut self, events: Vec<Event>) {
        let mut published = Vec::with_capacity(events.len());
        for event in events {
            let (key, who) = self.attribute(Owner::of(&event));
            self.with.metrics.count(&event, &who);
            // Its own agent tells of it.
            if who == Attribution::Foreign {
                continue;
            }
            let sequence = self.with.hub.next_sequence();
            let labels = &self.with.labels;
            let bytes = convert::encode(sequence, &event, &who, self.clock, labels);
            let event = Published {
                sequence,
                event,
                who,
                bytes,
            };
            published.push((key, event));
        }
        if !published.is_empty() {
            let before = self.with.hub.subscriber_losses();
            self.with.hub.publish(published);
            self.with.metrics.count_loss(Loss {
                source: LossSource::Subscriber,
                count: self.with.hub.subscriber_losses() - before,
            });
        }
    }

    fn lost(&mut self, total: Losses, now: Instant) {
        // A cgroup may be among what was lost. One that is not known is in no filter map, so it has no event
        // by which it could be noticed.
        if total.events() > self.losses.events() {
            self.rescan = Some(now);
        }
        for (old, new) in losses(&self.losses).into_iter().zip(losses(&total)) {
            let loss = Loss {
                source: new.source,
                count: new.count.saturating_sub(old.count),
            };
            if loss.count > 0 {
                self.with.metrics.count_loss(loss);
                self.with.hub.lost(loss, monotonic_now());
            }
        }
        self.losses = total;
    }

    /// Asks for the pods if there are containers whose name is not known, and soon again while one of them is young.
    fn want_pods(&mut self, now: Instant) {
        let index = &self.with.index;
        let nameless = index.containers().map(|(_, c)| c);
        let nameless = nameless.filter(|c| index.lacks_names(c, now));
        let youngest = nameless.map(|c| c.age(now)).min();
        if youngest.is_some() {
            self.with.wanted.notify_one();
        }
        self.ask = youngest.filter(|age| *age < YOUNG).map(|_| now + ASK);
    }

    // === what follows from changes

    /// Brings everything in step with what is known now.
    fn settle(&mut self) {
        let now = Instant::now();
        if now - self.cared >= CARE {
            self.cared = now;
            self.subscribers_changed |= self.with.hub.look_after();
        }
        if now - self.forgot >= FORGET {
            self.forgot = now;
            self.with.index.forget(now);
            // Who is counted has a container that is known, as its sandbox is as long as the pod is there.
            let named = self.with.index.containers().filter_map(|(_, c)| c.names());
            self.with.metrics.keep_pods(named.map(|names| &*names.pod));
        }
        if now - self.audited >= AUDIT {
            self.audited = now;
            self.with.maps.refresh();
            self.with.sets.iter_mut().for_each(|s| s.pair().refresh());
            self.subscribers_changed = true;
            self.rescan = Some(now);
        }
        if self.rescan.is_some_and(|due| due <= now) {
            let scanned = self.with.containers.scan_again(&mut self.with.index, now);
            // Not so soon after the last time.
            self.rescan = (!scanned).then_some(now + CARE);
            self.want_pods(now);
        }
        if self.ask.is_some_and(|due| due <= now) {
            self.want_pods(now);
        }
        self.with.index.let_go(now);
        self.with.containers.look(&mut self.with.index, now);
        let changed = self.generation != self.with.index.generation();
        if changed {
            self.generation = self.with.index.generation();
            self.with.hub.forget_verdicts();
        }
        if changed || self.subscribers_changed {
            self.subscribers_changed = false;
            self.select(now);
            self.with.containers.release(&self.with.index);
        }
        let released = self.held.release(&self.with.index, now);
        self.publish(released);
    }

    /// Makes the filter maps hold what is wanted.
    fn select(&mut self, now: Instant) {
        let with = &mut self.with;
        let matchers: Vec<&Matcher> = with.hub.matchers().chain(&with.record).collect();
        let wanted = selection::for_subscribers(&with.index, matchers.iter().copied(), now);
        let outcomes: Vec<Outcome> = std::iter::once(with.maps.replace(&wanted))
            .chain(with.sets.iter_mut().map(|set| set.follow(&with.index)))
            .collect();
        // What failed is tried again with the next look at the maps, and told once.
        let names = std::iter::once("").chain(with.sets.iter().map(PinnedFilterSet::name));
        for ((name, before), now) in names.zip(&self.outcomes).zip(&outcomes) {
            let no_room = now.no_room.saturating_sub(before.no_room);
            let failed = now.failed.saturating_sub(before.failed);
            with.metrics.count_map_errors(no_room + failed);
            if no_room > 0 {
                let all = now.no_room;
                warn!(
                    "{}: no room for {all} containers (--max-containers)",
                    shown(name)
                );
            }
            if failed > 0 {
                warn!("{}: {} entries cannot be changed", shown(name), now.failed);
            }
        }
        let without_room = outcomes[0].no_room as u64;
        self.outcomes = outcomes;
        let count = with.hub.set_without_room(without_room, monotonic_now());
        with.metrics.count_loss(Loss {
            source: LossSource::FilterMap,
            count,
        });
    }

    // === answers

    fn report(&self) -> Report {
        let with = &self.with;
        Report {
            status: self.status.clone(),
            sequence: with.hub.sequence(),
            subscribers: with.hub.subscribers(),
            history: with.hub.history_len(),
            pods: with.index.pods(),
            sizes: with.index.sizes(),
            lost: with.hub.losses().collect(),
            maps: with
                .maps
                .usage()
                .chain(with.sets.iter().flat_map(PinnedFilterSet::usage))
                .collect(),
        }
    }
}

/// The maps of a filter set, or those by which the kernel filters for subscribers.
fn shown(set: &str) -> String {
    match set {
        "" => "filter maps".into(),
        set => format!("filter set {set}"),
    }
}

/// The tracer's losses by place, in an order of their own.
fn losses(total: &Losses) -> [Loss; 4] {
    let loss = |source, count| Loss { source, count };
    [
        loss(LossSource::Ring, total.ring_full),
        loss(LossSource::Connections, total.map_full),
        loss(LossSource::Untracked, total.untracked),
        loss(LossSource::Agent, total.queue_full + total.undecodable),
    ]
}
