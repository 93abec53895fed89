/*!
The kernel side seen from user space: what can be loaded, loading it, and reading the ring.

[`Tracer`] owns the loaded object through one thread, the ring thread. Nobody else touches libbpf
while tracing, and what comes out is plain [`tcptracer_event`] values.
*/

mod attachment;
mod config;
mod connections;
mod control;
mod driver;
mod generation;
mod hooks;
mod load;
mod maps;
mod pinned;
mod plan;
mod programs;
mod seeder;
#[allow(unsafe_code, missing_docs, clippy::all, clippy::use_self)]
mod skel;
mod trial;
mod wire;

pub use config::{Config, Demand, Family, Filter};
pub use connections::Connections;
pub use control::Control;
pub use driver::{Consumer, Message, NoRoom, Tracer};
pub use generation::{Generation, LostCgroups};
pub use hooks::{Group, HOOKS, Hook, Instead, Place, Shortcoming};
pub use pinned::{Outcome, PinDir, PinnedSet, SetOf};
pub use plan::{Facts, Impossible, Plan, Trial};
pub use programs::Program;
pub use seeder::Seeder;
