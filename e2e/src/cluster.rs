//! The cluster, by `kubectl` and, if it is ours, by the program that controls its parts.

use std::env;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Where the release is.
pub const NAMESPACE: &str = "tcptracer";

/// Nothing that is waited for takes this long unless it is broken, however busy the machine is.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// The same, as programs have it that wait themselves.
pub const TIMEOUT: &str = "180s";

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

/// What was made in the cluster. It is deleted with the value, also if a test fails.
pub struct Made(Vec<String>);

impl Made {
    /// Its kind, its name, and where it is.
    pub fn new(object: &[&str]) -> Self {
        Self(object.iter().map(ToString::to_string).collect())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let object: Vec<&str> = self.0.iter().map(String::as_str).collect();
        let deleted = try_kubectl(&[&["delete", "--ignore-not-found"], &object[..]].concat());
        let err = String::from_utf8_lossy(&deleted.stderr);
        assert!(
            thread::panicking() || deleted.status.success(),
            "{object:?} stays: {err}"
        );
    }
}

/// Waits until all these pods are ready.
#[track_caller]
pub fn wait_ready(namespace: &str, selection: &[&str]) {
    let wait = [
        "wait",
        "--for=condition=Ready",
        "--timeout",
        TIMEOUT,
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

/// What becomes of a program that runs on a node.
pub fn on(node: &str, command: &[&str]) -> Output {
    let mut on = Command::new(control().expect("the test is run only with it"));
    on.args(["on", node])
        .args(command)
        .output()
        .expect("the program can be run")
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
