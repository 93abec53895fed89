/*!
The tool `tcptracer(8)` as a person meets it: the real binary, real connections.

Needs root. Each test makes its own network namespace and has the tool look at nothing else, by `-N`
or, where that would hide a column, by `-p` or a cgroup, so that the absence of a line can be asserted on
a busy host. Lines are waited for with a deadline; who stops the tool and expects all rows waits until
the connections are closed. The processes that connect and accept are this binary again, as `actor` (see
[`tcptracer_testing::Actor`]).
*/

mod check;
mod control_characters;
mod ends;
mod errors;
mod filter_maps;
mod filters;
mod json;
mod layouts;
mod losses;
mod opt_ins;

use std::env;
use std::process::ExitCode;

use tcptracer_testing::{ACTOR, Test, act, run};

const MODULES: &[(&str, &[Test])] = &[
    ("layouts", layouts::TESTS),
    ("filters", filters::TESTS),
    ("filter_maps", filter_maps::TESTS),
    ("opt_ins", opt_ins::TESTS),
    ("json", json::TESTS),
    ("control_characters", control_characters::TESTS),
    ("losses", losses::TESTS),
    ("ends", ends::TESTS),
    ("errors", errors::TESTS),
    ("check", check::TESTS),
];

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some(ACTOR) {
        return act();
    }
    run("root_tool", MODULES)
}
