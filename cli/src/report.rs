//! What goes to stderr while events go to stdout: losses and nodes that are not heard, as they happen and at the end.
//!
//! It decides whether everything that was asked for was shown.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use tcptracer_client::session::Meaning;
use tcptracer_client::time::timestamp;
use tcptracer_event::printable;
use tcptracer_proto::v1::{LossSource, Lost, NodeStatus, Paused};

use crate::exit::{Code, explained, is_usage, say};
use crate::plan::Plan;

/// What is asked for, as people are told.
#[derive(Debug, Default)]
pub struct Subject {
    /// The pods.
    pub pods: String,
    /// Where agents are looked for, and by what.
    pub agents: String,
    /// Nodes that may be asked at a time.
    pub max_nodes: usize,
    /// What is not there yet is waited for.
    pub waits: bool,
}

/// Times in which an agent traced nothing, one after the other.
#[derive(Debug)]
struct Pauses {
    count: usize,
    /// Of the first.
    from: Option<Timestamp>,
    /// Of the last.
    to: Option<Timestamp>,
}

/// What could not be shown.
#[derive(Debug, Default)]
pub struct Report {
    subject: Subject,
    /// An agent has answered.
    heard: bool,
    /// Node → source → count.
    lost: BTreeMap<String, BTreeMap<&'static str, u64>>,
    /// Node → when its agent traced nothing, as far as that has not been said yet.
    pauses: BTreeMap<String, Pauses>,
    /// Nodes whose agents traced nothing for a part of what was asked for.
    untraced: BTreeSet<String>,
    /// Nodes whose agents have begun to trace for us, as far as that has not been said yet.
    woken: BTreeSet<String>,
    /// Nodes whose agents do not answer now.
    silent: BTreeSet<String>,
    /// Nodes that have not been heard at some time.
    unheard: BTreeSet<String>,
    /// Nodes whose agents have started again.
    restarted: BTreeSet<String>,
    /// There was no agent at some time, although there was something to ask for.
    agentless: bool,
    beyond: usize,
    /// The last plan's; nodes without an agent that were told one by one.
    no_agents: bool,
    without_agent: BTreeSet<String>,
    nothing_selected: bool,
    /// Node → why the names of its pods may be missing, and what goes unseen there.
    told: BTreeMap<String, (String, Vec<String>)>,
}

impl Report {
    /// Nothing is missing yet.
    pub fn new(subject: Subject) -> Self {
        Self {
            subject,
            ..Self::default()
        }
    }

    /// Whom there is to ask has changed.
    pub fn planned(&mut self, plan: &Plan) {
        let Subject {
            pods,
            agents,
            max_nodes,
            waits,
        } = &self.subject;
        let outlook = match waits {
            true => "waiting for one",
            false => "nothing to show",
        };
        if plan.no_agents && !self.no_agents {
            say(&format!("found no agent ({agents}); {outlook}"));
        }
        if plan.nothing_selected && !self.nothing_selected {
            say(&format!("no pod is selected ({pods}); {outlook}"));
        }
        // That there is none at all says it of every node. The reasons of one that does not come up alternate.
        let told = |node: &&String| plan.no_agents || self.without_agent.contains(*node);
        for (node, why) in plan.without_agent.iter().filter(|(node, _)| !told(node)) {
            let what = match why {
                None => format!("{node} has no agent"),
                Some(why) => format!("the agent of {node} does not run ({why})"),
            };
            say(&format!("{what}: nothing of it is shown"));
        }
        if plan.beyond > self.beyond {
            say(&format!(
                "{} nodes are not asked, {max_nodes} are (--max-nodes)",
                plan.beyond
            ));
        }
        self.unheard.extend(plan.without_agent.keys().cloned());
        self.agentless |= plan.no_agents && !plan.nothing_selected;
        self.no_agents = plan.no_agents;
        self.without_agent = match plan.no_agents {
            true => BTreeSet::new(),
            false => plan.without_agent.keys().cloned().collect(),
        };
        self.beyond = self.beyond.max(plan.beyond);
        self.nothing_selected = plan.nothing_selected;
    }

    /// An agent has answered.
    pub fn heard(&mut self) {
        self.heard = true;
    }

    /// Whether an agent has answered.
    pub fn is_heard(&self) -> bool {
        self.heard
    }

    /// A node's agent answers.
    pub fn connected(&mut self, node: &str, restarted: bool) {
        self.heard = true;
        if self.silent.remove(node) {
            say(&format!("{node} is heard again"));
        }
        if restarted {
            say(&format!(
                "the agent of {node} has started again: what happened in between is not shown"
            ));
            self.restarted.insert(node.into());
        }
    }

    /// A node's agent does not answer. Told once, until it does.
    pub fn broken(&mut self, node: &str, why: &anyhow::Error) {
        if self.silent.insert(node.into()) {
            let why = explained(why);
            say(&format!("{node} is not heard: {why}; trying again"));
        }
        self.unheard.insert(node.into());
    }

    /// A node's agent has not answered, or not to the end, or will not; it is not asked again.
    pub fn failed(&mut self, node: &str, why: &anyhow::Error) {
        let how = match is_usage(why) {
            true => "refuses",
            false => "is not heard",
        };
        say(&format!("{node} {how}: {}", explained(why)));
        self.unheard.insert(node.into());
    }

    /// A node is not asked any more.
    pub fn dropped(&mut self, node: &str) {
        self.silent.remove(node);
        self.woken.remove(node);
    }

    /// Something is missing.
    pub fn lost(&mut self, node: &str, lost: Lost) {
        let what = lost_what(lost.source());
        say(&format!("{node} lost {} {what}", lost.count));
        *self
            .lost
            .entry(node.into())
            .or_default()
            .entry(what)
            .or_default() += lost.count;
    }

    /// An agent traced nothing for some time.
    pub fn paused(&mut self, node: &str, pause: Paused, meaning: Meaning) {
        match meaning {
            Meaning::Gap => drop(self.untraced.insert(node.into())),
            Meaning::Between => {}
            Meaning::Start => {
                self.woken.insert(node.into());
                return;
            }
        }
        let [from, to] = [pause.from, pause.to].map(|time| time.and_then(timestamp));
        let pauses = self
            .pauses
            .entry(node.into())
            .or_insert(Pauses { count: 0, from, to });
        pauses.count += 1;
        pauses.to = to;
    }

    /// An agent has said all of the past that it has to say.
    pub fn caught_up(&mut self, node: &str) {
        let Some(Pauses { count, from, to }) = self.pauses.remove(node) else {
            return;
        };
        let [from, to] = [from, to].map(|time| time.map_or("now".into(), second));
        say(&match count {
            1 => format!("{node} traced nothing from {from} to {to}: no client was subscribed"),
            _ => format!(
                "{node} traced nothing in {count} periods between {from} and {to}: no client was subscribed"
            ),
        });
    }

    /// All agents have said what they have to say of the past.
    pub fn all_caught_up(&mut self) {
        let woken: Vec<_> = std::mem::take(&mut self.woken).into_iter().collect();
        let nodes = match woken.as_slice() {
            [] => return,
            [node] => node.clone(),
            [first, .., last] => format!("{} nodes ({first} to {last})", woken.len()),
        };
        say(&format!(
            "tracing starts now on {nodes}: no client was subscribed before"
        ));
    }

    /// There is nothing in the past that was asked for. That nothing has happened is only one reason.
    pub fn nothing_remembered(&self) {
        if self.heard {
            say(
                "the agents remember nothing of this; what nobody watches they record only with --record",
            );
        }
    }

    /// A node's state.
    pub fn status(&mut self, node: &str, status: &NodeStatus) {
        let (error, shortcomings) = self.told.entry(node.into()).or_default();
        if *error != status.pods_error {
            *error = status.pods_error.clone();
            match error.as_str() {
                "" => say(&format!("{node} names its pods again")),
                error => say(&format!("{node} may lack names: {}", printable(error))),
            }
        }
        if *shortcomings != status.shortcomings {
            *shortcomings = status.shortcomings.clone();
            for shortcoming in shortcomings {
                say(&format!("{node}: {}", printable(&*shortcoming)));
            }
        }
    }

    /// The end of a watch.
    pub fn summary(&mut self) -> Code {
        // Of those who were not heard to the end.
        for node in self.pauses.keys().cloned().collect::<Vec<_>>() {
            self.caught_up(&node);
        }
        for (node, lost) in &self.lost {
            let counts: Vec<_> = lost
                .iter()
                .map(|(what, count)| format!("{count} {what}"))
                .collect();
            say(&format!("in all, {node} lost {}", counts.join(", ")));
        }
        for (nodes, what) in [
            (&self.unheard, "not heard all the time"),
            (&self.restarted, "with an agent that has started again"),
            (&self.untraced, "not traced all the time"),
        ] {
            if !nodes.is_empty() {
                let names: Vec<_> = nodes.iter().map(String::as_str).collect();
                say(&format!("nodes {what}: {}", names.join(", ")));
            }
        }
        if self.agentless && self.heard {
            say("for some time there was no agent");
        }
        if self.beyond > 0 {
            say(&format!("nodes beyond --max-nodes: {}", self.beyond));
        }
        self.code()
    }

    /// Whether everything was shown, or anything could be.
    pub fn code(&self) -> Code {
        let complete = self.lost.is_empty()
            && self.unheard.is_empty()
            && self.restarted.is_empty()
            && self.untraced.is_empty()
            && !self.agentless
            && self.beyond == 0;
        if !self.heard && (self.no_agents || !self.unheard.is_empty()) {
            Code::Failed
        } else if complete {
            Code::Complete
        } else {
            Code::Incomplete
        }
    }
}

/// To the second.
fn second(time: Timestamp) -> String {
    let second = TimestampRound::new()
        .smallest(Unit::Second)
        .mode(RoundMode::Trunc);
    time.round(second).unwrap_or(time).to_string()
}

fn lost_what(source: LossSource) -> &'static str {
    match source {
        LossSource::Ring => "events in the kernel's ring",
        LossSource::Connections => "connections without room in the kernel's table",
        LossSource::Untracked => "connections that ended without having been followed",
        LossSource::Agent => "events that its agent was too slow for",
        LossSource::Subscriber => "events that this program was too slow for",
        LossSource::History => "events that its agent no longer remembers",
        LossSource::FilterMap => "containers without room in the kernel's filter map",
        LossSource::Unspecified => "events in a way this program does not know",
    }
}
