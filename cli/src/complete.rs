//! Shell completion: the scripts of shells for `kubectl-tcptracer`, and kubectl's own protocol for plugins.
//!
//! kubectl runs `kubectl_complete-tcptracer WORD…` and reads one candidate a line, and a directive at the end. This
//! program answers when it is called by that name; namespaces, pods and nodes are the cluster's if it answers soon.

use std::ffi::OsString;
use std::fmt::Debug;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use clap_complete::Shell;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tcptracer_event::printable;

use crate::args::{Args, ClusterArgs};
use crate::cluster;
use crate::exit::Code;

/// The name under which kubectl calls.
const CALLED: &str = "kubectl_complete-tcptracer";
/// How long the cluster may take: somebody waits for the key they have pressed.
const PATIENCE: Duration = Duration::from_secs(2);
/// Of a kind, so that a large cluster is not read in full.
const MOST: u32 = 500;

/// kubectl's directives.
const NO_FILES: &str = ":4";
const FILES: &str = ":0";

/// The words to complete, if that is what is asked; the last is the one that is being written.
pub fn asked() -> Option<Vec<OsString>> {
    let mut words = std::env::args_os();
    let name = words.next()?;
    (Path::new(&name).file_stem()? == CALLED).then(|| words.collect())
}

/// The script of a shell.
pub fn script(shell: Shell) -> Result<Code> {
    let mut script = Vec::new();
    clap_complete::generate(
        shell,
        &mut Args::command(),
        "kubectl-tcptracer",
        &mut script,
    );
    io::stdout().write_all(&script)?;
    Ok(Code::Complete)
}

/// Writes what may stand for the last word.
pub async fn candidates(words: &[OsString]) -> Result<Code> {
    let words: Vec<String> = words
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let (last, before) = match words.split_last() {
        Some((last, before)) => (last.as_str(), before),
        None => ("", &[][..]),
    };
    let wanted = wanted(before, last);
    let (found, directive) = match wanted {
        Wanted::Fixed(found) => (found, NO_FILES),
        Wanted::Files => (Vec::new(), FILES),
        Wanted::Live(what, prefix, mut found) => {
            let live = tokio::time::timeout(PATIENCE, live(what, before)).await;
            let names = live.ok().and_then(Result::ok).unwrap_or_default();
            found.extend(names.into_iter().map(|name| format!("{prefix}{name}")));
            (found, NO_FILES)
        }
    };
    let mut to = io::stdout().lock();
    for candidate in found.iter().filter(|c| c.starts_with(last)) {
        writeln!(to, "{}", printable(candidate))?;
    }
    writeln!(to, "{directive}")?;
    Ok(Code::Complete)
}

/// What may stand somewhere.
#[derive(Debug, PartialEq)]
enum Wanted {
    Fixed(Vec<String>),
    Files,
    /// Names, behind what is there already, and words beside them.
    Live(Live, String, Vec<String>),
}

/// Names that only the cluster, or the kubeconfig, knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Live {
    Namespaces,
    Pods,
    Nodes,
    Contexts,
    Clusters,
    Users,
}

fn wanted(before: &[String], last: &str) -> Wanted {
    let mut command = Args::command();
    command.build();
    if before.iter().any(|word| word == "--") {
        return Wanted::Live(Live::Pods, String::new(), Vec::new());
    }
    // What stands alone: neither a flag nor the value of one.
    let mut follows_flag = false;
    let mut alone = before.iter().filter(|word| {
        let is_value = std::mem::replace(&mut follows_flag, flag(&command, word).is_some());
        !is_value && !word.starts_with('-')
    });
    let first = alone.next();
    let sub = first.and_then(|word| command.find_subcommand(word));
    // Behind a name of a pod there is no subcommand.
    let subcommands = match first {
        None => names_of_subcommands(&command),
        Some(_) => Vec::new(),
    };
    let command = sub.unwrap_or(&command);
    if let Some((flag, value)) = last.strip_prefix("--").and_then(|l| l.split_once('=')) {
        return match command.get_arguments().find(|a| a.get_long() == Some(flag)) {
            Some(arg) => of_values(arg, value, &format!("--{flag}=")),
            None => Wanted::Fixed(Vec::new()),
        };
    }
    if let Some(arg) = before.last().and_then(|word| flag(command, word)) {
        return of_values(arg, last, "");
    }
    if last.starts_with('-') {
        let flags = command.get_arguments().filter_map(Arg::get_long);
        return Wanted::Fixed(flags.map(|long| format!("--{long}")).collect());
    }
    match command
        .get_positionals()
        .next()
        .map(|arg| of_values(arg, last, ""))
    {
        Some(Wanted::Live(what, prefix, _)) => Wanted::Live(what, prefix, subcommands),
        Some(wanted) => wanted,
        None => Wanted::Fixed(Vec::new()),
    }
}

fn names_of_subcommands(command: &Command) -> Vec<String> {
    let subcommands = command.get_subcommands();
    subcommands.map(|sub| sub.get_name().into()).collect()
}

/// The flag that a word is, if a value follows.
fn flag<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    let is = |arg: &Arg| match word.strip_prefix("--") {
        Some(long) => arg.get_long() == Some(long),
        None => arg
            .get_short()
            .is_some_and(|short| word == format!("-{short}")),
    };
    let takes_value = |arg: &Arg| matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    command
        .get_arguments()
        .find(|arg| is(arg) && takes_value(arg))
}

/// `before` stands in front of the value in the same word.
fn of_values(arg: &Arg, value: &str, before: &str) -> Wanted {
    let possible = arg.get_possible_values();
    // Values are separated by commas; the last one is being written.
    let list = match (arg.get_value_delimiter(), value.rfind(',')) {
        (Some(','), Some(comma)) => &value[..=comma],
        _ => "",
    };
    let prefix = format!("{before}{list}");
    let fixed = |values: &[&str]| values.iter().map(|v| format!("{prefix}{v}")).collect();
    let live = match arg.get_id().as_str() {
        "namespace" | "agent_namespace" => Live::Namespaces,
        "pods" => Live::Pods,
        "node" => Live::Nodes,
        "context" => Live::Contexts,
        "cluster" => Live::Clusters,
        "user" => Live::Users,
        "output" => {
            return Wanted::Fixed(fixed(&[
                "table",
                "wide",
                "json",
                "jsonl",
                "yaml",
                "name",
                "custom-columns=",
                "jsonpath=",
            ]));
        }
        "not" => {
            return Wanted::Fixed(fixed(&[
                "namespace=",
                "selector=",
                "pod=",
                "container=",
                "node=",
                "pid=",
                "netns=",
                "port=",
                "cidr=",
                "type=",
                "ipv4",
                "ipv6",
                "host",
            ]));
        }
        "kubeconfig"
        | "tls_ca"
        | "tls_cert"
        | "tls_key"
        | "certificate_authority"
        | "client_certificate"
        | "client_key" => return Wanted::Files,
        _ => {
            let values: Vec<_> = possible.iter().map(|value| value.get_name()).collect();
            return Wanted::Fixed(fixed(&values));
        }
    };
    Wanted::Live(live, prefix, Vec::new())
}

/// Names as the cluster, or the kubeconfig, has them; `before` may say which.
async fn live(what: Live, before: &[String]) -> Result<Vec<String>> {
    let given = given(before);
    let cluster = ClusterArgs::from_arg_matches(&given)?;
    let kubeconfig = || Ok::<_, anyhow::Error>(cluster::kubeconfig(&cluster)?.unwrap_or_default());
    match what {
        Live::Contexts => Ok(kubeconfig()?.contexts.into_iter().map(|c| c.name).collect()),
        Live::Clusters => Ok(kubeconfig()?.clusters.into_iter().map(|c| c.name).collect()),
        Live::Users => Ok(kubeconfig()?
            .auth_infos
            .into_iter()
            .map(|u| u.name)
            .collect()),
        Live::Namespaces => names(Api::<Namespace>::all(cluster::reach(&cluster)?.client)).await,
        Live::Nodes => names(Api::<Node>::all(cluster::reach(&cluster)?.client)).await,
        Live::Pods => {
            let reach = cluster::reach(&cluster)?;
            names(pods(reach.client, &reach.namespace, &given)).await
        }
    }
}

fn given(before: &[String]) -> ArgMatches {
    let words = ["kubectl-tcptracer"]
        .into_iter()
        .chain(before.iter().map(String::as_str));
    Args::command().ignore_errors(true).get_matches_from(words)
}

fn pods(client: Client, namespace: &str, given: &ArgMatches) -> Api<Pod> {
    let named = given
        .get_many::<String>("namespace")
        .and_then(|mut n| n.next());
    match named {
        _ if given.get_flag("all_namespaces") => Api::all(client),
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::namespaced(client, namespace),
    }
}

async fn names<K>(api: Api<K>) -> Result<Vec<String>>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let found = api
        .list_metadata(&ListParams::default().limit(MOST))
        .await?;
    Ok(found.items.iter().map(ResourceExt::name_any).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(line: &str) -> Wanted {
        let mut words: Vec<String> = line.split(' ').map(Into::into).collect();
        let last = words.pop().unwrap_or_default();
        wanted(&words, &last)
    }

    fn fixed(names: &[&str]) -> Wanted {
        Wanted::Fixed(names.iter().map(|n| (*n).into()).collect())
    }

    fn live(what: Live, prefix: &str) -> Wanted {
        Wanted::Live(what, prefix.into(), Vec::new())
    }

    fn pods_or_subcommands() -> Wanted {
        let subcommands = ["connections", "status", "completion", "help"];
        Wanted::Live(
            Live::Pods,
            String::new(),
            subcommands.map(Into::into).into(),
        )
    }

    #[test]
    fn every_place_has_its_candidates() {
        for (line, expected) in [
            ("", pods_or_subcommands()),
            ("web", pods_or_subcommands()),
            ("web-0 web", live(Live::Pods, "")),
            ("-n status ", pods_or_subcommands()),
            ("-A -n=status ", pods_or_subcommands()),
            ("--namespace status connections ", live(Live::Pods, "")),
            ("web-0 status ", live(Live::Pods, "")),
            ("-n ", live(Live::Namespaces, "")),
            ("-n shop web", pods_or_subcommands()),
            ("--namespace=sh", live(Live::Namespaces, "--namespace=")),
            ("-n shop,", live(Live::Namespaces, "shop,")),
            ("--node ", live(Live::Nodes, "")),
            ("--context ", live(Live::Contexts, "")),
            ("connections ", live(Live::Pods, "")),
            ("connections -n ", live(Live::Namespaces, "")),
            ("-- ", live(Live::Pods, "")),
            ("--kubeconfig ", Wanted::Files),
            ("--color ", fixed(&["auto", "always", "never"])),
            ("--type ", fixed(&["connect", "accept", "close", "failed"])),
            (
                "--type=close,",
                fixed(
                    &["connect", "accept", "close", "failed"]
                        .map(|t| format!("--type=close,{t}"))
                        .each_ref()
                        .map(String::as_str),
                ),
            ),
            ("status ", fixed(&[])),
            ("--port ", fixed(&[])),
            ("--bogus=", fixed(&[])),
        ] {
            assert_eq!(after(line), expected, "{line}");
        }
        let Wanted::Fixed(flags) = after("--na") else {
            panic!("flags are not live");
        };
        assert!(flags.contains(&"--namespace".into()) && flags.contains(&"--server".into()));
    }

    #[test]
    fn what_stands_before_says_where_to_look() {
        let words: Vec<String> = ["--context", "two", "-n", "shop", "--bogus"]
            .map(Into::into)
            .into();
        let given = given(&words);
        assert_eq!(
            given.get_one::<String>("context").map(String::as_str),
            Some("two")
        );
        assert_eq!(
            given.get_one::<String>("namespace").map(String::as_str),
            Some("shop")
        );
    }
}
