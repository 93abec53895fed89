/*!
Traces TCP connections: who opened them, who closed them, why, and what they carried.

One direction of flow, and the modules say so:

```text
kernel ──ring──▶ bpf (load, probe, decode) ──Event──▶ host (filter options, rows, JSON)
   ▲                    │  └──Facts, Plan──▶ check (what works here)
   │                    └──Event──▶ node ──▶ identity (whose is it?) ──▶ hub (who wants it?) ──▶ server (gRPC)
   └── filter maps ◀── node ◀── filter ◀──────────────── subscriptions ◀──────────────────────┘
                         ▲
                   kube (pods), cgroup (containers)
```

[`event`] is the domain and imports nothing of ours; libbpf types exist only in [`bpf`], those of
Kubernetes only in `kube`, those of the gRPC API only in `server`. The modules of the agent need the
feature `agent`.
*/

pub mod bpf;
#[cfg(feature = "agent")]
pub mod cgroup;
pub mod check;
pub mod clock;
#[cfg(feature = "agent")]
pub mod daemon;
pub mod event;
#[cfg(feature = "agent")]
pub mod filter;
#[cfg(all(test, feature = "agent"))]
mod fixture;
pub mod host;
#[cfg(feature = "agent")]
pub mod http;
#[cfg(feature = "agent")]
pub mod hub;
#[cfg(feature = "agent")]
pub mod identity;
#[cfg(feature = "agent")]
pub mod kube;
#[cfg(feature = "agent")]
pub mod metrics;
#[cfg(feature = "agent")]
pub mod newest;
#[cfg(feature = "agent")]
pub mod node;
#[cfg(feature = "agent")]
pub mod server;
