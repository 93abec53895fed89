/*!
The host tool `tcptracer(8)`: bcc's, flag for flag, and more.

[`Args`] is the command line, [`run`] traces until a signal, the end of `--duration` or a closed
pipe. Events arrive on the main thread, which alone writes to stdout; a second thread owns the
tracer and waits for the reasons to stop.
*/

mod args;
mod json;
mod output;
mod run;
mod table;

pub use args::{Args, Command, Format};
pub use output::say;
pub use run::run;
