/*!
The node's task: it owns everything that changes while the agent runs.

Cgroups and events come from the tracer, pods from their source, questions from the servers, each by a
channel; the task takes one at a time, so no state is shared and none is locked. It waits for nobody: what it
cannot name yet is held back for some tens of milliseconds at most, and subscribers have queues. Nor does a
question make it work long, or keep it from the tracer: what takes time is done by who asks, in [`Handle`].
*/

mod containers;
mod decisions;
mod demands;
mod ends;
mod handle;
mod held;
mod kept;
mod programs;
mod seeding;
mod selection;
mod task;
mod waiting;

pub use containers::Containers;
pub use handle::{CannotAttach, Command, Handle, Listing, Refusal};
pub use programs::Programs;
pub use selection::{FilterSet, Pair, PinnedFilterSet};
pub use task::{Inputs, Node, Parts};
