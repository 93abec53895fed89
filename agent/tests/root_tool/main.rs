/*!
The tool `tcptracer(8)` as a person meets it: the real binary, real connections.

Needs root. Each test makes its own network namespace and has the tool look at nothing else, by `-N`
or by `-p`, so that the absence of a line can be asserted on a busy host. Lines are waited for with a
deadline. The processes that connect and accept are this binary again, as `actor` (see
[`support::Actor`]).
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

// Some of it is for the tests of the agent.
#[allow(dead_code)]
mod support;

use std::env;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// A test's name and its body, which panics if something is wrong.
type Test = (&'static str, fn());

/// Pairs the functions with their names.
macro_rules! tests {
    ($($test:ident),+ $(,)?) => {
        pub const TESTS: &[crate::Test] = &[$((stringify!($test), $test)),+];
    };
}
use tests;

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
    let mut args = env::args().skip(1);
    match args.next().as_deref() {
        Some(support::ACTOR) => return support::act(),
        Some(support::HOLDER) => return support::hold(),
        _ => {}
    }

    let mut arguments = Arguments::from_args();
    // Namespaces and cgroups are each test's own, but the ring and the CPUs are not.
    arguments.test_threads = Some(1);
    if !arguments.list && !rustix::process::geteuid().is_root() {
        eprintln!("root_tool: these tests need root: run them by 'make test'");
        return ExitCode::FAILURE;
    }
    let trials = MODULES
        .iter()
        .flat_map(|&(module, tests)| {
            tests.iter().map(move |&(test, body)| {
                Trial::test(format!("root::{module}::{test}"), move || {
                    body();
                    Ok(())
                })
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
