//! The Helm release under test.

use std::env;
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::cluster::{NAMESPACE, TIMEOUT, apply, get, kubectl, said, try_kubectl, wait_until};

const NAME: &str = "tcptracer";

/// An installed release. It is gone with the value, whatever tests have made of it.
pub struct Release(());

/// What every installation here has beside the chart's defaults.
fn settings() -> Vec<String> {
    let mut settings = Vec::new();
    if let Ok(image) = env::var("E2E_IMAGE") {
        let (repository, tag) = image.rsplit_once(':').expect("REPOSITORY:TAG");
        settings.push("image.registry=".into());
        settings.push(format!("image.repository={repository}"));
        settings.push(format!("image.tag={tag}"));
    }
    settings
}

/// Helm on the release; `what` is `install` or `upgrade`.
fn helm(what: &str, more: &[&str]) {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/tcptracer");
    let mut helm = Command::new("helm");
    helm.args([what, NAME]).arg(chart).args(["-n", NAMESPACE]);
    helm.args(["--wait", "--timeout", TIMEOUT]);
    for setting in settings()
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
    {
        helm.args(["--set", setting]);
    }
    said(&mut helm);
}

impl Release {
    /// With the chart's defaults, as its notes say.
    pub fn install() -> Self {
        apply(&serde_json::json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {
                "name": NAMESPACE,
                "labels": { "pod-security.kubernetes.io/enforce": "privileged" },
            },
        }));
        let release = Self(());
        helm("install", &[]);
        release
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        let _ = Command::new("helm")
            .args([
                "uninstall",
                NAME,
                "-n",
                NAMESPACE,
                "--wait",
                "--ignore-not-found",
            ])
            .output();
        let _ = try_kubectl(&["delete", "namespace", NAMESPACE, "--timeout", TIMEOUT]);
    }
}

/// Takes it away.
pub fn uninstall() {
    said(Command::new("helm").args(["uninstall", NAME, "-n", NAMESPACE, "--wait"]));
}

/// The release with other settings. It is as it was with the end of the value, also if a test fails.
pub struct Upgraded(());

impl Upgraded {
    #[track_caller]
    pub fn to(settings: &[&str]) -> Self {
        let upgraded = Self(());
        helm("upgrade", settings);
        settled();
        upgraded
    }
}

impl Drop for Upgraded {
    fn drop(&mut self) {
        let rollback = ["rollback", NAME, "1", "-n", NAMESPACE, "--wait"];
        let output = Command::new("helm").args(rollback).output();
        if !thread::panicking() {
            assert!(output.is_ok_and(|o| o.status.success()), "no rollback");
            settled();
        }
    }
}

/// What the release's own test says, which has to pass.
pub fn helm_test() -> String {
    said(Command::new("helm").args([
        "test",
        NAME,
        "-n",
        NAMESPACE,
        "--logs",
        "--timeout",
        TIMEOUT,
    ]))
}

/// The agent's pod on a node.
#[track_caller]
pub fn agent_on(node: &str) -> String {
    let field = format!("spec.nodeName={node}");
    let pods = get(&["pod", "-n", NAMESPACE, "--field-selector", &field]);
    let name = pods["items"][0]["metadata"]["name"].as_str();
    name.expect("there is an agent").into()
}

/// Starts every agent anew, and waits until they are ready.
#[track_caller]
pub fn restart() {
    kubectl(&["rollout", "restart", "daemonset", "-n", NAMESPACE]);
    settled();
}

/// Waits until all agents are as the DaemonSet describes them.
#[track_caller]
pub fn settled() {
    let daemon_sets = get(&["daemonset", "-n", NAMESPACE]);
    for name in daemon_sets["items"].as_array().expect("a list") {
        let name = name["metadata"]["name"].as_str().expect("a name");
        let set = format!("daemonset/{name}");
        kubectl(&[
            "rollout",
            "status",
            &set,
            "-n",
            NAMESPACE,
            "--timeout",
            TIMEOUT,
        ]);
    }
    wait_until("no agent is ending", || {
        let pods = get(&["pod", "-n", NAMESPACE]);
        let pods = pods["items"].as_array().expect("a list");
        pods.iter()
            .all(|p| p["metadata"]["deletionTimestamp"].is_null())
    });
}
