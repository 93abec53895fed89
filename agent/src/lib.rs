/*!
Traces TCP connections: who opened them, who closed them, why, and what they carried.

One direction of flow, and the modules say so:

```text
kernel ──ring──▶ bpf (load, probe, decode) ──Event──▶ host (filter options, rows, JSON)
                        └──Facts, Plan──▶ check (what works here)
```

[`event`] is the domain and imports nothing of ours; libbpf types exist only in [`bpf`].
*/

pub mod bpf;
pub mod check;
pub mod event;
pub mod host;
