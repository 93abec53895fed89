/*!
The node agent: its options, and its tasks from start to end.

One direction of flow, and the modules say so:

```text
tcptracer::bpf ──Event──▶ node ──▶ identity (whose is it?) ──▶ hub (who wants it?) ──▶ server (gRPC)
   ▲                       ▲
   └── filter maps ◀── filter ◀───────────────── subscriptions ◀───────────────────────┘
                      kube (pods), cgroup (containers)
```

The types of Kubernetes exist only in `kube`, those of the gRPC API only in `api` and `server`; the hub keeps encoded
events as bytes. Imports go one way: kube, cgroup ← identity ← filter ← hub ← report ← api, metrics ← node ← server ←
run.

The tasks are the node's, the pod source's and the two servers'. The first one that fails ends the process with
its error; a signal ends them in order: the tracer, then the node's task once it has handed out what was left,
then the streams, then the servers.
*/

pub mod api;
mod args;
pub mod cgroup;
pub mod filter;
#[cfg(test)]
mod fixture;
pub mod health;
pub mod http;
pub mod hub;
pub mod identity;
pub mod kube;
pub mod metrics;
pub mod newest;
pub mod node;
pub mod preflight;
pub mod report;
mod run;
pub mod server;

pub use args::{Args, Command};
pub use run::run;
