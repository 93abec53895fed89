//! From the command line to what agents are asked, and to which pods are meant.

use std::collections::BTreeSet;
use std::fmt;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tcptracer_client::request::{Filters, Span};
use tcptracer_proto::v1;
use tcptracer_proto::v1::watch_request::History;

use crate::args::{FilterArgs, SpanArgs};

/// Which events to show. `namespaces`: those to show; all, if there is none.
pub fn filters(args: &FilterArgs, pods: &[String], namespaces: &[String]) -> Filters {
    let families = match (args.ipv4, args.ipv6) {
        (true, _) => vec![v1::IpFamily::V4.into()],
        (_, true) => vec![v1::IpFamily::V6.into()],
        _ => Vec::new(),
    };
    let filter = v1::Filter {
        namespaces: namespaces.to_vec(),
        pods: pods.to_vec(),
        label_selector: labels(args),
        containers: args.container.clone(),
        nodes: args.node.clone(),
        pids: args.pid.clone(),
        netns: args.netns.clone(),
        families,
        ports: args.port.iter().map(|p| u32::from(*p)).collect(),
        cidrs: args.cidr.iter().map(ToString::to_string).collect(),
        types: args
            .types
            .iter()
            .map(|t| v1::EventType::from(*t).into())
            .collect(),
        ..v1::Filter::default()
    };
    Filters {
        allow: match filter == v1::Filter::default() {
            true => Vec::new(),
            false => vec![filter],
        },
        deny: args.not.iter().map(|denied| denied.0.clone()).collect(),
    }
}

/// Selectors that are given several times all have to hold, as their parts do.
fn labels(args: &FilterArgs) -> String {
    args.selector.join(",")
}

/// From when to when.
pub fn span(args: &SpanArgs) -> Span {
    let since = args.since.map(|time| prost_types::Duration {
        seconds: time.as_secs().cast_signed(),
        nanos: time.subsec_nanos().cast_signed(),
    });
    let past = since.map(History::Since);
    let past = past.or_else(|| args.last.map(History::Last));
    Span {
        past,
        follow: args.follow || past.is_none(),
    }
}

/// Which pods are meant, so that only the nodes that hold them are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// All, if there is none.
    pub namespaces: Vec<String>,
    /// All, if there is none.
    pub pods: BTreeSet<String>,
    /// A label selector; all, if it is empty.
    pub labels: String,
    /// All, if there is none.
    pub containers: BTreeSet<String>,
    /// All, if there is none.
    pub nodes: BTreeSet<String>,
    /// Of these nothing is shown.
    pub not_nodes: BTreeSet<String>,
}

impl Selection {
    /// As [`filters`].
    pub fn new(args: &FilterArgs, pods: &[String], namespaces: &[String]) -> Self {
        Self {
            namespaces: namespaces.to_vec(),
            pods: pods.iter().cloned().collect(),
            labels: labels(args),
            containers: args.container.iter().cloned().collect(),
            nodes: args.node.iter().cloned().collect(),
            // What is hidden by its node is hidden whatever else it is.
            not_nodes: args.not.iter().flat_map(|n| n.0.nodes.clone()).collect(),
        }
    }

    /// Each namespace by itself, or all at once.
    pub fn scopes(&self) -> impl Iterator<Item = Option<&str>> {
        let all = self.namespaces.is_empty().then_some(None);
        all.into_iter()
            .chain(self.namespaces.iter().map(|n| Some(n.as_str())))
    }

    /// Whether a pod is meant, of those that have the labels and are in the namespaces.
    pub fn selects(&self, pod: &Pod) -> bool {
        let containers = || {
            let spec = pod.spec.iter();
            let usual = spec.clone().flat_map(|s| &s.containers).map(|c| &c.name);
            let init = spec
                .clone()
                .flat_map(|s| s.init_containers.iter().flatten());
            let ephemeral = spec.flat_map(|s| s.ephemeral_containers.iter().flatten());
            usual
                .chain(init.map(|c| &c.name))
                .chain(ephemeral.map(|c| &c.name))
                .any(|name| self.containers.contains(name))
        };
        (self.pods.is_empty() || self.pods.contains(&pod.name_any()))
            && (self.containers.is_empty() || containers())
    }

    /// Whether events pass whatever the pods: then every node is asked.
    pub fn is_every_node(&self) -> bool {
        self.namespaces.is_empty()
            && self.pods.is_empty()
            && self.labels.is_empty()
            && self.containers.is_empty()
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(",");
        let parts = [
            ("namespace", self.namespaces.join(",")),
            ("pod", joined(&self.pods)),
            ("labels", self.labels.clone()),
            ("container", joined(&self.containers)),
            ("node", joined(&self.nodes)),
            ("not node", joined(&self.not_nodes)),
        ];
        let given: Vec<_> = parts
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        f.write_str(&given.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Args;

    fn args(line: &[&str]) -> Args {
        Args::try_parse_from([&["kubectl-tcptracer"], line].concat()).expect("valid")
    }

    #[test]
    fn no_flags_ask_for_everything() {
        let args = args(&[]);
        assert_eq!(filters(&args.filters, args.pods(), &[]), Filters::default());
        assert!(Selection::new(&args.filters, args.pods(), &[]).is_every_node());
        assert_eq!(
            span(&args.span),
            Span {
                past: None,
                follow: true
            }
        );
    }

    #[test]
    fn every_flag_reaches_the_filter() {
        let args = args(&[
            "web-0",
            "-l",
            "app=cart",
            "-l",
            "tier in (a,b)",
            "-c",
            "app",
            "--node",
            "n1",
            "-p",
            "7",
            "-N",
            "8",
            "-6",
            "--port",
            "80,443",
            "--cidr",
            "10.0.0.0/8,::1",
            "--type",
            "close",
            "--not",
            "port=53",
            "--not",
            "namespace=kube-system",
        ]);
        let filters = filters(&args.filters, args.pods(), &["shop".into()]);
        assert_eq!(
            filters.allow,
            [v1::Filter {
                scope: 0,
                namespaces: vec!["shop".into()],
                pods: vec!["web-0".into()],
                label_selector: "app=cart,tier in (a,b)".into(),
                containers: vec!["app".into()],
                workloads: vec![],
                nodes: vec!["n1".into()],
                pids: vec![7],
                netns: vec![8],
                families: vec![v1::IpFamily::V6.into()],
                ports: vec![80, 443],
                cidrs: vec!["10.0.0.0/8".into(), "::1/128".into()],
                types: vec![v1::EventType::Close.into()],
            }]
        );
        assert_eq!(
            filters.deny,
            [
                v1::Filter {
                    ports: vec![53],
                    ..v1::Filter::default()
                },
                v1::Filter {
                    namespaces: vec!["kube-system".into()],
                    ..v1::Filter::default()
                },
            ]
        );
    }

    #[test]
    fn what_is_of_the_past_ends_unless_it_is_followed() {
        let span = |line| span(&args(line).span);
        let since = Some(History::Since(prost_types::Duration {
            seconds: 300,
            nanos: 0,
        }));
        assert_eq!(
            span(&["--since", "5m"]),
            Span {
                past: since,
                follow: false
            }
        );
        assert_eq!(
            span(&["--since", "5m", "-f"]),
            Span {
                past: since,
                follow: true
            }
        );
        assert_eq!(
            span(&["--last", "20"]),
            Span {
                past: Some(History::Last(20)),
                follow: false
            }
        );
        assert_eq!(
            span(&["-f"]),
            Span {
                past: None,
                follow: true
            }
        );
    }

    #[test]
    fn what_selects_pods_selects_nodes() {
        let every = |line: &[&str], namespaces: &[String]| {
            let args = args(line);
            Selection::new(&args.filters, args.pods(), namespaces).is_every_node()
        };
        assert!(every(&["-A", "--port", "80", "--node", "n1"], &[]));
        assert!(!every(&["-A", "-l", "app"], &[]));
        assert!(!every(&["-A", "-c", "app"], &[]));
        assert!(!every(&["web-0"], &[]));
        assert!(!every(&[], &["shop".into()]));
    }
}
