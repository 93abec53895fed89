//! The task.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;
use tcptracer::bpf::{Demand, Message, Outcome, PinDir};
use tcptracer::clock::{Clock, monotonic_now};
use tcptracer_event::{CgroupChange, Event, LossSource, Losses};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::containers::Containers;
use super::decisions::Decisions;
use super::demands::Demands;
use super::ends::Ends;
use super::handle::{CannotAttach, Command, Refusal};
use super::held::Held;
use super::kept::Kept;
use super::programs::Programs;
use super::seeding::Seeding;
use super::selection::{self, Pair, PinnedFilterSet, Wanted};
use super::waiting::Waiting;
use crate::api;
use crate::filter::Matcher;
use crate::hub::{Hub, Loss, Status, Taken};
use crate::identity::{Attributed, Attribution, Index, Owner};
use crate::kube::Update;
use crate::metrics::Metrics;
use crate::report::Report;

/// Between two looks after subscribers, if there are any.
const CARE: Duration = Duration::from_millis(250);

/// Between two looks for what can be forgotten.
const FORGET: Duration = Duration::from_secs(5);

/// Between two looks at what the filter maps really hold, and which cgroups there really are.
const AUDIT: Duration = Duration::from_secs(30);

/// Between two questions for the name of a young container. The kubelet does not report its id at once, and tells nobody.
const ASK: Duration = Duration::from_secs(1);

/// After the hooks could not be attached, until that is tried again although nobody asks: whether the agent is ready depends
/// on it, and clients may not find one that is not.
const RETRY: Duration = Duration::from_secs(10);

/// A container that has no name yet at this age has to wait for the source's own time: a sandbox never gets one.
const YOUNG: Duration = Duration::from_secs(5);

/// What the task works with, all of it its own.
pub struct Parts {
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
    /// Asks the tracer to flush; returns which number answers that.
    pub flush: Box<dyn FnMut() -> u64 + Send>,
    /// Asks the tracer for the hooks that this takes; returns which number answers that.
    pub attach: Box<dyn FnMut(Demand) -> u64 + Send>,
    /// What they are attached for at the start.
    pub attached: Demand,
    /// How long those stay attached that nobody needs.
    pub keep_attached: Duration,
    /// Says to the programs what becomes of the subscribers' maps.
    pub programs: Box<dyn Programs>,
    /// The last cgroup that the first scan has found for sure. `None`: the programs do not know the cgroups that are reported.
    pub decided: Option<u64>,
    /// Has what is open followed of whom these maps select. Takes long.
    pub seed: Arc<dyn Fn() -> Result<()> + Send + Sync>,
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
    parts: Parts,
    held: Held,
    ends: Ends,
    demands: Demands,
    seeding: Seeding,
    /// The look for what is open that is under way.
    look: Option<JoinHandle<Result<()>>>,
    waiting: Waiting,
    kept: Kept,
    /// Why the hooks could not be attached, and when to try again.
    unattached: Option<(String, Instant)>,
    clock: Clock,
    status: Status,
    losses: Losses,
    /// What could not be put in the subscribers' maps, and in those of each filter set, as of the last time.
    outcomes: Vec<Outcome>,
    /// What the subscribers' maps were last made to hold.
    wanted: Wanted,
    /// What the maps and the subscribers' verdicts are made for: the index, and whether who subscribes
    /// has changed since.
    generation: u64,
    subscribers_changed: bool,
    decisions: Decisions,
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
    pub fn new(parts: Parts) -> Self {
        let now = Instant::now();
        let status = Status {
            shortcomings: parts.shortcomings.clone(),
            ..Status::default()
        };
        let mut node = Self {
            held: Held::default(),
            ends: Ends::default(),
            demands: Demands::new(parts.attached, parts.keep_attached),
            seeding: Seeding::default(),
            look: None,
            waiting: Waiting::default(),
            kept: Kept::new(parts.keep_attached),
            unattached: None,
            clock: Clock::now(),
            status,
            losses: Losses::default(),
            outcomes: vec![Outcome::default(); 1 + parts.sets.len()],
            wanted: Wanted::default(),
            // Another than the index's: all is to be made.
            generation: u64::MAX,
            subscribers_changed: true,
            decisions: Decisions::new(parts.decided),
            rescan: None,
            ask: None,
            cared: now,
            forgot: now,
            audited: now,
            parts,
        };
        node.parts.hub.set_status(node.status.clone());
        if !node.demands.has(Demand::Connections) {
            node.parts.hub.pause(Timestamp::now(), monotonic_now());
        }
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
                Some(update) = inputs.pods.recv() => self.on_pods(update),
                Some(command) = inputs.commands.recv(), if may_ask => {
                    self.on_command(command);
                    has_answered = true;
                }
                message = inputs.tracer.recv() => match message {
                    Some(message) => {
                        self.on_message(message);
                        has_answered = false;
                    }
                    None => anyhow::bail!("the tracer has ended"),
                },
                looked = ended(&mut self.look) => self.on_looked(looked),
                () = sleep_until(due.into()) => {}
            }
        }
        // The tracer hands over what is left and closes its end.
        while let Some(message) = inputs.tracer.recv().await {
            self.on_message(message);
        }
        let held = self.held.release_all(&self.parts.index);
        self.publish(held);
        self.parts.hub.end_all();
        Ok(())
    }

    /// When to look at the clock next.
    fn due(&self) -> Instant {
        let care = (self.need(self.cared) > Demand::Nothing).then_some(self.cared + CARE);
        let looks = self.parts.containers.due();
        let let_go = self.parts.index.let_go_due();
        let detach = self.demands.due().filter(|_| care.is_none());
        let retry = self.unattached.as_ref().map(|(_, retry)| *retry);
        let retry = retry.filter(|_| self.demands.last() == Demand::Nothing);
        let seed = self.seeding.due(self.is_waited_for());
        let seed = seed.filter(|_| self.demands.has(Demand::Connections));
        [
            care,
            seed,
            detach,
            self.kept.due(),
            retry,
            self.held.due(),
            looks,
            let_go,
            self.rescan,
            self.ask,
        ]
        .into_iter()
        .flatten()
        .fold(self.forgot + FORGET, Instant::min)
    }

    // === inputs

    fn on_message(&mut self, message: Message) {
        let now = Instant::now();
        match message {
            Message::Events(events) => self.on_events(events, now),
            Message::Lost(total) => self.on_losses(total, now),
            Message::Cgroups(changes) => self.on_cgroups(changes, now),
            Message::Lacks(what, why) => {
                warn!("{what}: {why}");
                self.status.shortcomings.push(what.to_string());
                self.parts.hub.set_status(self.status.clone());
            }
            Message::Hooks(number, done) => self.on_hooks(number, done, now),
            Message::Flushed(answered) => self.ends.flushed(answered, self.held.last_due()),
        }
    }

    fn on_cgroups(&mut self, changes: Vec<CgroupChange>, now: Instant) {
        let Parts {
            index, containers, ..
        } = &mut self.parts;
        let mut made = None;
        for change in changes {
            match change {
                CgroupChange::Made { id, path } => {
                    match containers.follow_path(id, &path) {
                        Some(path) => index.cgroup_made(id, path, now),
                        None => index.note_outside(id),
                    }
                    made = Some(id);
                }
                CgroupChange::Removed { id } => index.cgroup_removed(id, now),
            }
        }
        if let Some(id) = made {
            self.decisions.made(id);
            self.want_pods(now);
        }
    }

    fn on_pods(&mut self, update: Update) {
        let now = Instant::now();
        let index = &mut self.parts.index;
        match update {
            Update::Replaced(pods) => {
                index.pods_replaced(pods, now);
                self.status.pods_synced = true;
            }
            Update::Applied(pod) => index.pod_applied(pod),
            Update::Deleted(uid) => index.pod_deleted(&uid, now),
            Update::Failed(why) => {
                if self.status.pods_error.replace(why).is_none() {
                    self.parts.metrics.count_pod_error();
                }
            }
            Update::Recovered => self.status.pods_error = None,
        }
        self.parts.hub.set_status(self.status.clone());
    }

    /// What takes hooks waits for them, and for what is open to be followed.
    fn on_command(&mut self, command: Command) {
        let demand = match &command {
            Command::Subscribe {
                follow: true,
                matcher,
                ..
            } => demand_of(matcher),
            Command::Follow { .. } => Demand::Connections,
            _ => return self.answer(command, false),
        };
        self.waiting.push(demand, command);
        // Once it is answered, the kernel lets the events pass that it is about.
        self.select(Instant::now());
        self.waiting.set_growths(self.seeding.grown());
        self.answer_waiting(false);
    }

    /// Answers those for whom all is there that they wait for.
    fn answer_waiting(&mut self, woke: bool) {
        let Self {
            demands, seeding, ..
        } = self;
        let is_there = |demand, growths| demands.has(demand) && seeding.has(growths);
        for command in self.waiting.take_ready(is_there) {
            self.answer(command, woke);
        }
    }

    /// Refuses those for whom it is not.
    fn refuse_waiting(&mut self, why: &str) {
        self.waiting.refuse(why);
        self.subscribers_changed = true;
    }

    /// `woke`: the command has ended a pause.
    fn answer(&mut self, command: Command, woke: bool) {
        // Who asked and is gone does not need the answer.
        match command {
            Command::Subscribe {
                id,
                matcher,
                past,
                follow,
                reply,
            } => {
                let hub = &mut self.parts.hub;
                let subscribed = hub.subscribe(id, matcher, past, follow, woke);
                // What was selected for it while it waited may go.
                self.subscribers_changed |= subscribed.is_err();
                let _ = reply.send(subscribed.map_err(|Taken| Refusal::Taken));
            }
            Command::Follow { matcher, reply } => {
                let _ = reply.send(Ok(self.kept.lease(matcher)));
            }
            Command::End { id, reply } => {
                let subscriber = self.parts.hub.find(&id);
                if let Some(subscriber) = subscriber {
                    self.ends.begin(subscriber, &mut self.parts.flush);
                }
                let waited = self.end_waiting(&id);
                let _ = reply.send(subscriber.is_some() || waited);
            }
            Command::Name { owners, reply } => {
                let mut clock = self.clock;
                clock.keep_up();
                let index = &self.parts.index;
                let name = |owner: Owner| (owner, index.attribute(owner).1);
                let _ = reply.send((clock, owners.into_iter().map(name).collect()));
            }
            Command::Report(reply) => {
                let _ = reply.send(self.report());
            }
        }
    }

    /// Ends a subscription that waits for hooks: it gets what it wants of the past, and nothing else. Whether there is one.
    fn end_waiting(&mut self, ended: &str) -> bool {
        let Some(mut command) = self.waiting.take(ended) else {
            return false;
        };
        if let Command::Subscribe { follow, .. } = &mut command {
            *follow = false;
        }
        self.answer(command, false);
        self.subscribers_changed = true;
        true
    }

    // === hooks

    /// What is needed now.
    fn need(&self, now: Instant) -> Demand {
        let parts = &self.parts;
        let retries = self
            .unattached
            .as_ref()
            .is_some_and(|(_, retry)| *retry <= now);
        let subscribers = parts.hub.matchers().map(demand_of);
        let is_followed = self.kept.has_leases() || parts.record.is_some() || retries;
        let followed = is_followed.then_some(Demand::Connections);
        subscribers
            .chain(self.waiting.demands())
            .chain(followed)
            .max()
            .unwrap_or_default()
    }

    /// Asks for the hooks that are needed.
    fn follow_demand(&mut self, now: Instant) {
        let Some(demand) = self.demands.need(self.need(now), now) else {
            return;
        };
        let was_traced = self.demands.has(Demand::Connections);
        let number = (self.parts.attach)(demand);
        self.demands.asked(demand, number);
        self.seeding.attach();
        if was_traced && !self.demands.has(Demand::Connections) {
            self.parts.hub.pause(Timestamp::now(), monotonic_now());
        }
    }

    fn on_hooks(&mut self, number: u64, done: Result<(), String>, now: Instant) {
        let was_traced = self.demands.has(Demand::Connections);
        let wanted = self.demands.last();
        if !self.demands.answered(number, done.is_ok()) {
            return;
        }
        let has_woken = !was_traced && self.demands.has(Demand::Connections);
        if has_woken {
            self.parts.hub.end_pause(Timestamp::now(), monotonic_now());
            self.seeding.attached();
        }
        self.unattached = None;
        match &done {
            Ok(()) => {}
            // It is done before they are attached again.
            Err(why) if wanted == Demand::Nothing => warn!("after the hooks were detached: {why}"),
            Err(why) => {
                self.parts.metrics.count_attach_error();
                warn!("{}", CannotAttach(why.clone()));
                if !self.demands.has(Demand::Connections) {
                    self.unattached = Some((why.clone(), now + RETRY));
                }
            }
        }
        match done {
            Ok(()) => self.answer_waiting(has_woken),
            Err(why) => self.refuse_waiting(&why),
        }
        self.follow_demand(now);
    }

    // === what is open

    /// Somebody waits for what is open to be followed.
    fn is_waited_for(&self) -> bool {
        let growths = self.waiting.growths();
        growths.is_some_and(|all| !self.seeding.has(all))
    }

    /// Begins to look for what is open, if that is due.
    fn look_for_open(&mut self, now: Instant) {
        let is_due = self.seeding.is_due(self.is_waited_for(), now);
        if is_due && self.demands.has(Demand::Connections) {
            self.seeding.begin(now);
            let seed = Arc::clone(&self.parts.seed);
            self.look = Some(spawn_blocking(move || seed()));
        }
    }

    fn on_looked(&mut self, looked: Result<()>) {
        self.seeding.end(looked.is_ok(), Instant::now());
        match looked {
            Ok(()) => self.answer_waiting(false),
            Err(e) => {
                let why = format!("{e:#}");
                self.parts.metrics.count_attach_error();
                warn!("{}", CannotAttach(why.clone()));
                self.refuse_waiting(&why);
            }
        }
    }

    // === events

    fn on_events(&mut self, events: Vec<Event>, now: Instant) {
        self.clock.keep_up();
        let Parts {
            index,
            containers,
            programs,
            ..
        } = &mut self.parts;
        // That one was lost may be said later than its first event.
        let is_unknown = |e: &Event| index.should_scan(e.owner.cgroup_id);
        if events.iter().any(is_unknown) && self.decisions.lacks_cgroups(&**programs) {
            index.doubt();
            self.decisions.lost(now);
            self.rescan.get_or_insert(now);
        }
        let scan = |index: &mut Index| containers.scan_again(index, now);
        let ready = self.held.admit(events, index, now, scan);
        if self.held.due().is_some() {
            self.want_pods(now);
        }
        self.publish(ready);
    }

    /// Hands events out, under the names that are known now.
    fn publish(&mut self, mut events: Vec<Attributed>) {
        let parts = &mut self.parts;
        let mut nameless = 0;
        for Attributed { event, who, .. } in &events {
            parts.metrics.count(event, who);
            let is_nameless = *who == Attribution::Unknown && event.owner.cgroup_id != 0;
            nameless += u64::from(is_nameless);
        }
        // A filter by name lets none of these pass. After a loss they may be of containers that were gone before a scan found them.
        if nameless > 0 && self.decisions.may_lack_names() {
            let loss = Loss {
                source: LossSource::Agent,
                count: nameless,
            };
            parts.metrics.count_loss(loss);
            parts.hub.lost(loss, monotonic_now());
        }
        // Its own agent tells of it.
        events.retain(|attributed| attributed.who != Attribution::Foreign);
        if events.is_empty() {
            return;
        }
        let encode = |sequence, attributed: &Attributed| {
            let Attributed { event, who, .. } = attributed;
            api::encode(sequence, event, who, self.clock, &parts.labels)
        };
        parts.metrics.count_loss(Loss {
            source: LossSource::Subscriber,
            count: parts.hub.publish(events, encode),
        });
    }

    fn on_losses(&mut self, total: Losses, now: Instant) {
        // One that is not known is in no filter map.
        if total.cgroups > self.losses.cgroups {
            self.parts.index.doubt();
            self.decisions.lost(now);
            self.rescan = Some(now);
        }
        let before = self.losses.by_source();
        for ((source, now), (_, before)) in total.by_source().into_iter().zip(before) {
            let count = now.saturating_sub(before);
            let loss = Loss { source, count };
            if loss.count > 0 {
                self.parts.metrics.count_loss(loss);
                self.parts.hub.lost(loss, monotonic_now());
            }
        }
        self.losses = total;
    }

    /// Asks for the pods if there are containers whose name is not known, and soon again while one of them is young.
    fn want_pods(&mut self, now: Instant) {
        let index = &self.parts.index;
        let nameless = index.containers().map(|(_, c)| c);
        let nameless = nameless.filter(|c| index.lacks_names(c, now));
        let youngest = nameless.map(|c| c.age(now)).min();
        if youngest.is_some() {
            self.parts.wanted.notify_one();
        }
        self.ask = youngest.filter(|age| *age < YOUNG).map(|_| now + ASK);
    }

    // === what follows from changes

    /// Brings everything in step with what is known now.
    fn settle(&mut self) {
        let now = Instant::now();
        if now - self.cared >= CARE {
            self.cared = now;
            self.subscribers_changed |= self.parts.hub.look_after();
            self.subscribers_changed |= self.kept.drop_leases();
            self.ends
                .retain(|subscriber| self.parts.hub.has(subscriber));
        }
        if now - self.forgot >= FORGET {
            self.forgot = now;
            self.parts.index.forget(now);
            // Who is counted has a container that is known, as its sandbox is as long as the pod is there.
            let named = self.parts.index.containers().filter_map(|(_, c)| c.names());
            self.parts.metrics.keep_pods(named.map(|names| &*names.pod));
        }
        if now - self.audited >= AUDIT {
            self.audited = now;
            self.parts.maps.refresh();
            self.parts.sets.iter_mut().for_each(|s| s.pair().refresh());
            // A program may have read a map before a change and remembered that as of after it.
            warn_of(self.parts.programs.changed());
            self.subscribers_changed = true;
            self.rescan = Some(now);
        }
        let mut healed = None;
        if self.rescan.is_some_and(|due| due <= now) {
            let lost = self.parts.programs.begin_look();
            let scanned = self.parts.containers.scan_again(&mut self.parts.index, now);
            healed = lost.ok().filter(|_| scanned);
            // Not so soon after the last time.
            self.rescan = (!scanned).then_some(now + CARE);
            self.want_pods(now);
        }
        if self.ask.is_some_and(|due| due <= now) {
            self.want_pods(now);
        }
        self.parts.index.let_go(now);
        self.parts.containers.look(&mut self.parts.index, now);
        let changed = self.generation != self.parts.index.generation();
        if changed {
            self.generation = self.parts.index.generation();
            self.parts.hub.forget_verdicts();
        }
        let released = self.held.release(&self.parts.index, now);
        self.publish(released);
        for subscriber in self.ends.take_due(self.held.due()) {
            self.parts.hub.end(subscriber);
            self.subscribers_changed = true;
        }
        self.kept.depart(self.parts.hub.take_departed(), now);
        self.subscribers_changed |= self.kept.drop_departed(now);
        if changed || self.subscribers_changed {
            self.subscribers_changed = false;
            self.select(now);
            self.parts.containers.release(&self.parts.index);
        }
        let programs = &*self.parts.programs;
        if let Some(lost) = healed {
            warn_of(self.decisions.heal(programs, lost));
        }
        warn_of(self.decisions.tell(programs));
        self.follow_demand(now);
        self.look_for_open(now);
    }

    /// Makes the filter maps hold what is wanted.
    fn select(&mut self, now: Instant) {
        let parts = &mut self.parts;
        let matchers = parts.hub.matchers().chain(&parts.record);
        let matchers = matchers.chain(self.kept.matchers());
        let matchers: Vec<&Matcher> = matchers.chain(self.waiting.matchers()).collect();
        let wanted = selection::for_subscribers(&parts.index, matchers.iter().copied(), now);
        let grows = !self.wanted.includes(&wanted);
        if grows {
            self.seeding.grow();
            warn_of(parts.programs.grow());
        }
        let outcomes: Vec<Outcome> = std::iter::once(parts.maps.replace(&wanted))
            .chain(parts.sets.iter_mut().map(|set| set.follow(&parts.index)))
            .collect();
        self.wanted = wanted;
        if outcomes[0].changed {
            warn_of(parts.programs.changed());
        }
        // There is room, or there are rights, for what was wanted before.
        if outcomes[0].missing() < self.outcomes[0].missing() {
            self.seeding.grow();
            warn_of(parts.programs.grow());
        }
        // What failed is tried again with the next look at the maps, and told once.
        let names = std::iter::once("").chain(parts.sets.iter().map(PinnedFilterSet::name));
        for ((name, before), now) in names.zip(&self.outcomes).zip(&outcomes) {
            let no_room = now.no_room.saturating_sub(before.no_room);
            let failed = now.failed.saturating_sub(before.failed);
            parts.metrics.count_map_errors(no_room + failed);
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
        let count = parts.hub.set_without_room(without_room, monotonic_now());
        parts.metrics.count_loss(Loss {
            source: LossSource::FilterMap,
            count,
        });
    }

    // === answers

    fn report(&self) -> Report {
        let parts = &self.parts;
        Report {
            status: self.status.clone(),
            sequence: parts.hub.sequence(),
            subscribers: parts.hub.subscribers(),
            paused_since: parts.hub.paused_since(),
            paused_for: parts.hub.paused_for(monotonic_now()),
            attach_error: self.unattached.as_ref().map(|(why, _)| why.clone()),
            history: parts.hub.history_len(),
            pods: parts.index.pods(),
            sizes: parts.index.sizes(),
            lost: parts.hub.losses().collect(),
            maps: parts
                .maps
                .usage()
                .chain(parts.sets.iter().flat_map(PinnedFilterSet::usage))
                .collect(),
        }
    }
}

/// What a subscription takes.
fn demand_of(matcher: &Matcher) -> Demand {
    match matcher.wants_failures() {
        true => Demand::Failures,
        false => Demand::Connections,
    }
}

/// Waits for the end of what runs, if anything does.
async fn ended(task: &mut Option<JoinHandle<Result<()>>>) -> Result<()> {
    let Some(running) = task else {
        return pending().await;
    };
    let ended = running.await;
    *task = None;
    ended.context("a look for what is open has panicked")?
}

/// The next look at the maps does it again.
fn warn_of(done: Result<()>) {
    if let Err(e) = done {
        warn!("{e:#}");
    }
}

/// The maps of a filter set, or those by which the kernel filters for subscribers.
fn shown(set: &str) -> String {
    match set {
        "" => "filter maps".into(),
        set => format!("filter set {set}"),
    }
}
