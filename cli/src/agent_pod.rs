//! What the API server says of a pod with an agent: where it is, whether it can be asked, and how.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;

/// The agent's container; one of another name is known by being the first.
const CONTAINER: &str = "agent";

/// The annotation of a pod whose agent speaks TLS; its value is the name in the agent's certificate.
pub const SERVER_NAME: &str = "tcptracer/tls-server-name";

/// A pod that runs an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPod {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The node it serves.
    pub node: String,
    /// Whether it can be asked.
    pub state: State,
    /// When it was made, in seconds since 1970: of two, the newer one serves the node.
    pub created: i64,
    /// The name in its certificate, if it speaks TLS.
    pub tls_name: Option<String>,
}

/// How far an agent has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It does not run, and why.
    Down(String),
    /// It runs, and is not ready or about to end. What is wrong with it, only itself can say.
    Running,
    /// It is ready.
    Ready,
}

impl AgentPod {
    /// Of a pod that has a node.
    pub fn of(pod: &Pod, node: String) -> Self {
        let created = pod.metadata.creation_timestamp.as_ref();
        Self {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            node,
            state: State::of(pod),
            created: created.map_or(0, |t| t.0.as_second()),
            tls_name: pod.annotations().get(SERVER_NAME).cloned(),
        }
    }
}

impl State {
    /// Of two agents, the one that is further serves the node.
    pub fn rank(&self) -> u8 {
        match self {
            Self::Down(_) => 0,
            Self::Running => 1,
            Self::Ready => 2,
        }
    }

    fn of(pod: &Pod) -> Self {
        let Some(status) = &pod.status else {
            return Self::Down("Pending".into());
        };
        let is_ready = status
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == "Ready" && c.status == "True");
        if is_ready && pod.metadata.deletion_timestamp.is_none() {
            return Self::Ready;
        }
        let containers = || status.container_statuses.iter().flatten();
        let container = containers()
            .find(|c| c.name == CONTAINER)
            .or_else(|| containers().next());
        // Of an evicted pod the containers say nothing.
        let why = status.reason.clone().or_else(|| status.phase.clone());
        match container {
            Some(container) if is_running(container) => Self::Running,
            Some(container) => Self::Down(down(container).or(why).unwrap_or_default()),
            None => Self::Down(why.unwrap_or_default()),
        }
    }
}

fn is_running(container: &ContainerStatus) -> bool {
    let state = container.state.as_ref();
    state.is_some_and(|state| state.running.is_some())
}

/// As `kubectl get pods` calls it.
fn down(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    let waiting = state.waiting.as_ref().and_then(|w| w.reason.clone());
    waiting.or_else(|| state.terminated.as_ref()?.reason.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(pod: Value) -> AgentPod {
        let pod = serde_json::from_value(pod).expect("a pod");
        AgentPod::of(&pod, "n1".into())
    }

    fn state(status: Value) -> State {
        of(json!({ "metadata": {}, "status": status })).state
    }

    fn down(why: &str) -> State {
        State::Down(why.into())
    }

    #[test]
    fn where_it_is_and_how_it_speaks() {
        let pod = of(json!({
            "metadata": {
                "namespace": "tracing", "name": "a", "creationTimestamp": "1970-01-01T00:01:00Z",
                "annotations": { "tcptracer/tls-server-name": "a.tracing.svc", "x": "y" },
            },
        }));
        assert_eq!(
            pod,
            AgentPod {
                namespace: "tracing".into(),
                name: "a".into(),
                node: "n1".into(),
                state: down("Pending"),
                created: 60,
                tls_name: Some("a.tracing.svc".into()),
            }
        );
    }

    #[test]
    fn what_runs_can_be_asked() {
        let ready = |is: &str| json!([{ "type": "Ready", "status": is }]);
        let running = json!([
            { "name": "proxy", "state": { "waiting": { "reason": "ImagePullBackOff" } } },
            { "name": "agent", "state": { "running": {} } },
        ]);
        let status = json!({ "phase": "Running", "conditions": ready("True"), "containerStatuses": running });
        assert_eq!(state(status.clone()), State::Ready);
        let ending = json!({ "deletionTimestamp": "2024-01-01T00:00:00Z" });
        assert_eq!(
            of(json!({ "metadata": ending, "status": status })).state,
            State::Running
        );
        let status = json!({ "phase": "Running", "conditions": ready("False"), "containerStatuses": running });
        assert_eq!(state(status), State::Running);
    }

    #[test]
    fn what_does_not_run_says_why() {
        let container = |name: &str, state: Value| json!({ "phase": "Running", "containerStatuses": [{ "name": name, "state": state }] });
        let backoff = json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } });
        assert_eq!(
            state(container("agent", backoff.clone())),
            down("CrashLoopBackOff")
        );
        assert_eq!(state(container("other", backoff)), down("CrashLoopBackOff"));
        let killed = json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled" } });
        assert_eq!(state(container("agent", killed)), down("OOMKilled"));
        assert_eq!(state(container("agent", json!({}))), down("Running"));
        assert_eq!(state(json!({ "phase": "Pending" })), down("Pending"));
        assert_eq!(
            state(json!({ "phase": "Failed", "reason": "Evicted" })),
            down("Evicted")
        );
    }
}
