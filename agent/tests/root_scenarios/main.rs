/*!
What really happens on this kernel, and exactly what the tracer says of it.

One binary that needs no other file, so that it runs on other kernels as well: it is the tests and,
started as `actor`, also the processes that the tests watch. Needs root, BTF and tracefs, and fails
without. What the kernel itself does not have, say MPTCP, cannot happen on it: such a scenario asserts
that the kernel refuses it, and counts as ignored. With `--ignored` those run that need netem.
*/

mod actors;
mod cases;
mod links;
mod trace;

use std::env;
use std::process::ExitCode;

use tcptracer_testing::{ACTOR, act, run_with_optional};

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some(ACTOR) {
        return act();
    }
    run_with_optional("root_scenarios", cases::ALL, cases::OPTIONAL)
}
