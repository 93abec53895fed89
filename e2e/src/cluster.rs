//! The cluster, by `kubectl` and, if it is ours, by the program that controls its parts.

use std::env;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::release::NAMESPACE;

/// Nothing that is waited for takes this long unless it is broken.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until something holds.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// What a program says on stdout; it has to succeed.
#[track_caller]
pub fn said(command: &mut Command) -> String {
    let output = command.output().expect("the program can be run");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {err}");
    String::from_utf8(output.stdout).expect("it is text")
}

/// `kubectl` with these arguments, which has to succeed.
#[track_caller]
pub fn kubectl(arguments: &[&str]) -> String {
    said(Command::new("kubectl").args(arguments))
}

/// The same, which may fail.
pub fn try_kubectl(arguments: &[&str]) -> Output {
    let mut kubectl = Command::new("kubectl");
    kubectl
        .args(arguments)
        .output()
        .expect("kubectl can be run")
}

/// An object, or a list of some.
#[track_caller]
pub fn get(arguments: &[&str]) -> Value {
    let said = kubectl(&[&["get", "-o", "json"], arguments].concat());
    serde_json::from_str(&said).expect("kubectl writes JSON")
}

/// Makes the cluster have an object.
#[track_caller]
pub fn apply(object: &Value) {
    let mut kubectl = Command::new("kubectl")
        .args(["apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("kubectl can be run");
    let mut stdin = kubectl.stdin.take().expect("it has a stdin");
    write!(stdin, "{object}").expect("kubectl reads");
    drop(stdin);
    let status = kubectl.wait().expect("kubectl ends");
    assert!(status.success(), "kubectl refuses {object}");
}

/// Waits until all these pods are ready.
#[track_caller]
pub fn wait_ready(namespace: &str, selection: &[&str]) {
    let wait = [
        "wait",
        "--for=condition=Ready",
        "--timeout=60s",
        "pod",
        "-n",
        namespace,
    ];
    // Until there is one, kubectl does not wait.
    wait_until("the pod is made", || {
        let names = [&["get", "pod", "-o", "name", "-n", namespace], selection].concat();
        let output = try_kubectl(&names);
        output.status.success() && !output.stdout.is_empty()
    });
    kubectl(&[&wait[..], selection].concat());
}

/// What stops and starts parts of the cluster.
pub fn control() -> Option<String> {
    env::var("E2E_CLUSTER").ok().filter(|path| !path.is_empty())
}

/// Does something to a part of the cluster: `stop apiserver`.
#[track_caller]
pub fn part(words: &[&str]) -> String {
    let control = control().expect("the test is run only with it");
    said(Command::new(control).args(words))
}

/// What a program says that runs on a node.
#[track_caller]
pub fn on(node: &str, command: &[&str]) -> String {
    part(&[&["on", node], command].concat())
}

/// Says on stderr what there is, and what agents have to say, before it is taken away.
pub fn diagnose() {
    let agents = ["-n", NAMESPACE, "-l", "app.kubernetes.io/name=tcptracer"];
    for command in [
        &["get", "pod", "-A", "-o", "wide"][..],
        &[
            "get",
            "event",
            "-A",
            "--sort-by=.metadata.creationTimestamp",
        ],
        &[
            &["logs", "--prefix", "--timestamps", "--tail=200"][..],
            &agents,
        ]
        .concat(),
    ] {
        let output = try_kubectl(command);
        eprintln!("\n# kubectl {}", command.join(" "));
        for text in [output.stdout, output.stderr] {
            eprint!("{}", String::from_utf8_lossy(&text));
        }
    }
}
