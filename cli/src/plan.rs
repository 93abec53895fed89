//! Which agents to ask. Pure: what the cluster looks like in, whom to ask out.

use std::collections::{BTreeMap, BTreeSet};

use crate::agent_pod::{AgentPod, State};
use crate::way::Target;

/// On which nodes there is something to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// On all that have an agent.
    EveryNode,
    /// On those that hold selected pods, or did until a moment ago.
    Nodes(BTreeSet<String>),
}

/// Whom to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Node → its agent.
    pub ask: BTreeMap<String, Target>,
    /// Nodes with something to see and nobody to ask → why the agent does not run, if there is one.
    pub without_agent: BTreeMap<String, Option<String>>,
    /// Nodes that are not asked because there are too many.
    pub beyond: usize,
    /// There is no agent, running or not.
    pub no_agents: bool,
    /// No pod is selected, on the nodes that may be asked.
    pub nothing_selected: bool,
}

/// `only`: the nodes that may be asked; all, if there is none. `except`: those that may not. `asked`: those that are being
/// asked; they go first, so that nobody is dropped for a node that comes later.
pub fn plan(
    agents: &[AgentPod],
    wanted: &Wanted,
    only: &BTreeSet<String>,
    except: &BTreeSet<String>,
    max: usize,
    asked: &BTreeSet<String>,
) -> Plan {
    let rank = |agent: &AgentPod| (agent.state.rank(), agent.created);
    let mut serving: BTreeMap<&str, &AgentPod> = BTreeMap::new();
    for agent in agents {
        let best = serving.entry(&agent.node).or_insert(agent);
        if rank(agent) > rank(best) {
            *best = agent;
        }
    }
    let mut nodes: Vec<&str> = match wanted {
        Wanted::EveryNode => serving.keys().copied().collect(),
        Wanted::Nodes(nodes) => nodes.iter().map(String::as_str).collect(),
    };
    // A node that the user names is one where something is to be seen.
    if *wanted == Wanted::EveryNode {
        nodes.extend(
            only.iter()
                .map(String::as_str)
                .filter(|n| !serving.contains_key(n)),
        );
    }
    nodes.retain(|node| (only.is_empty() || only.contains(*node)) && !except.contains(*node));

    let mut plan = Plan {
        no_agents: agents.is_empty(),
        nothing_selected: *wanted != Wanted::EveryNode && nodes.is_empty(),
        ..Plan::default()
    };
    nodes.sort_by_key(|node| (!asked.contains(*node), *node));
    for node in nodes {
        let agent = match serving.get(node) {
            // One that is asked may only be between two states.
            Some(agent) if asked.contains(node) => agent,
            Some(AgentPod {
                state: State::Down(why),
                ..
            }) => {
                plan.without_agent.insert(node.into(), Some(why.clone()));
                continue;
            }
            Some(agent) => agent,
            None => {
                plan.without_agent.insert(node.into(), None);
                continue;
            }
        };
        if plan.ask.len() < max {
            plan.ask.insert(node.into(), target(agent));
        } else {
            plan.beyond += 1;
        }
    }
    plan
}

fn target(agent: &AgentPod) -> Target {
    Target::Pod {
        namespace: agent.namespace.clone(),
        name: agent.name.clone(),
        ready: agent.state == State::Ready,
        tls_name: agent.tls_name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::State::{Down, Ready, Running};
    use super::*;

    fn agent(name: &str, node: &str, state: State, created: i64) -> AgentPod {
        AgentPod {
            namespace: "tcptracer".into(),
            name: name.into(),
            node: node.into(),
            state,
            created,
            tls_name: None,
        }
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|n| (*n).into()).collect()
    }

    fn asked(plan: &Plan) -> Vec<(&str, &str)> {
        let pod = |target: &'_ Target| match target {
            Target::Pod { name, .. } => name.clone(),
            Target::Server => String::new(),
        };
        plan.ask
            .iter()
            .map(|(node, target)| {
                (
                    node.as_str(),
                    Box::leak(pod(target).into_boxed_str()) as &str,
                )
            })
            .collect()
    }

    #[test]
    fn only_nodes_with_selected_pods_are_asked() {
        let agents = [
            agent("a", "n1", Ready, 1),
            agent("b", "n2", Ready, 1),
            agent("c", "n3", Ready, 1),
        ];
        let none = BTreeSet::new();
        let every = plan(&agents, &Wanted::EveryNode, &none, &none, 50, &none);
        assert_eq!(asked(&every), [("n1", "a"), ("n2", "b"), ("n3", "c")]);

        let some = Wanted::Nodes(set(&["n3", "n9"]));
        let some = plan(&agents, &some, &none, &none, 50, &none);
        assert_eq!(asked(&some), [("n3", "c")]);
        assert_eq!(some.without_agent, [("n9".into(), None)].into());
        assert!(!some.nothing_selected);

        let nothing = plan(
            &agents,
            &Wanted::Nodes(none.clone()),
            &none,
            &none,
            50,
            &none,
        );
        assert_eq!(
            nothing,
            Plan {
                nothing_selected: true,
                ..Plan::default()
            }
        );
    }

    #[test]
    fn nodes_that_are_named_limit_the_others() {
        let agents = [agent("a", "n1", Ready, 1), agent("b", "n2", Ready, 1)];
        let none = BTreeSet::new();
        let made = plan(
            &agents,
            &Wanted::EveryNode,
            &set(&["n2", "n7"]),
            &none,
            50,
            &none,
        );
        assert_eq!(asked(&made), [("n2", "b")]);
        assert_eq!(made.without_agent, [("n7".into(), None)].into());
        let wanted = Wanted::Nodes(set(&["n1"]));
        let made = plan(&agents, &wanted, &set(&["n2"]), &none, 50, &none);
        assert_eq!(
            made,
            Plan {
                nothing_selected: true,
                ..Plan::default()
            }
        );
    }

    #[test]
    fn nodes_of_which_nothing_is_shown_are_not_asked() {
        let agents = [agent("a", "n1", Ready, 1), agent("b", "n2", Ready, 1)];
        let none = BTreeSet::new();
        let except = set(&["n1", "n3"]);
        let some = Wanted::Nodes(set(&["n1", "n2", "n3"]));
        for (wanted, only) in [
            (Wanted::EveryNode, &none),
            (Wanted::EveryNode, &set(&["n1", "n2", "n3"])),
            (some, &none),
        ] {
            let made = plan(&agents, &wanted, only, &except, 1, &set(&["n1"]));
            assert_eq!(asked(&made), [("n2", "b")]);
            assert!(made.without_agent.is_empty());
            assert_eq!(made.beyond, 0);
        }
    }

    #[test]
    fn that_there_is_no_agent_is_known() {
        let none = BTreeSet::new();
        let made = plan(&[], &Wanted::EveryNode, &none, &none, 50, &none);
        assert_eq!(
            made,
            Plan {
                no_agents: true,
                ..Plan::default()
            }
        );
        let some = Wanted::Nodes(set(&["n1"]));
        let made = plan(&[], &some, &none, &none, 50, &none);
        assert_eq!(
            made,
            Plan {
                without_agent: [("n1".into(), None)].into(),
                no_agents: true,
                ..Plan::default()
            }
        );
    }

    #[test]
    fn who_is_asked_stays_when_there_are_too_many() {
        let agents: Vec<_> = ["n1", "n2", "n3", "n4"]
            .iter()
            .map(|n| agent(n, n, Ready, 1))
            .collect();
        let none = BTreeSet::new();
        let first = plan(&agents, &Wanted::EveryNode, &none, &none, 2, &none);
        assert_eq!(asked(&first), [("n1", "n1"), ("n2", "n2")]);
        assert_eq!(first.beyond, 2);
        let later = plan(
            &agents,
            &Wanted::EveryNode,
            &none,
            &none,
            2,
            &set(&["n3", "n4"]),
        );
        assert_eq!(asked(&later), [("n3", "n3"), ("n4", "n4")]);
    }

    #[test]
    fn of_two_agents_the_one_that_is_further_or_newer_serves() {
        let none = BTreeSet::new();
        let down = || Down("Pending".into());
        for (old, new, expected) in [
            (Ready, Running, "old"),
            (Ready, down(), "old"),
            (Running, down(), "old"),
            (Running, Ready, "new"),
            (Ready, Ready, "new"),
            (Running, Running, "new"),
        ] {
            let mut agents = [agent("old", "n", old, 1), agent("new", "n", new, 2)];
            for _ in 0..2 {
                let made = plan(&agents, &Wanted::EveryNode, &none, &none, 50, &none);
                assert_eq!(asked(&made), [("n", expected)], "{agents:?}");
                agents.reverse();
            }
        }
        let agents = [
            agent("old", "n", Down("Evicted".into()), 1),
            agent("new", "n", Down("ContainerCreating".into()), 2),
        ];
        let made = plan(&agents, &Wanted::EveryNode, &none, &none, 50, &none);
        let why = Some("ContainerCreating".into());
        assert_eq!(made.without_agent, [("n".into(), why)].into());
    }

    #[test]
    fn an_agent_that_runs_is_asked_ready_or_not() {
        let none = BTreeSet::new();
        let target = |ready| Target::Pod {
            namespace: "tcptracer".into(),
            name: "a".into(),
            ready,
            tls_name: None,
        };
        for (state, ready) in [(Running, false), (Ready, true)] {
            let agents = [agent("a", "n1", state, 1)];
            let made = plan(&agents, &Wanted::EveryNode, &none, &none, 50, &none);
            assert_eq!(made.ask, [("n1".into(), target(ready))].into());
            assert!(made.without_agent.is_empty());
        }
    }

    #[test]
    fn an_agent_that_is_down_is_waited_for_unless_it_is_asked() {
        let agents = [agent("a", "n1", Down("CrashLoopBackOff".into()), 1)];
        let none = BTreeSet::new();
        let made = plan(&agents, &Wanted::EveryNode, &none, &none, 50, &none);
        let why = Some("CrashLoopBackOff".into());
        assert_eq!(made.without_agent, [("n1".into(), why)].into());
        assert!(made.ask.is_empty() && !made.no_agents);
        let made = plan(&agents, &Wanted::EveryNode, &none, &none, 50, &set(&["n1"]));
        assert_eq!(asked(&made), [("n1", "a")]);
        assert!(made.without_agent.is_empty());
    }
}
