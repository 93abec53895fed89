/*!
The kernel core, and the host tool on it.

```text
kernel ──ring──▶ bpf (try, load, decode) ──Event──▶ tool (options, rows, JSON)
                  └──Facts, Plan──▶ check (what works here)
```

[`tcptracer_event`] is what both talk about, and imports nothing of ours; libbpf's types exist only in [`bpf`]. The node
agent is another crate, on top of this one.
*/

pub mod bpf;
pub mod check;
pub mod clock;
pub mod tool;
