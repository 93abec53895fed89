/*!
The agent as a process: its options, and its tasks from start to end.

The tasks are the node's, the pod source's and the two servers'. The first one that fails ends the process with
its error; a signal ends them in order: the tracer, then the node's task once it has handed out what was left,
then the streams, then the servers.
*/

mod args;
mod check;
mod probe;
mod run;

pub use args::{Args, Command};
pub use check::{CheckArgs, check};
pub use probe::probe;
pub use run::run;
