/*!
The agent as its clients meet it: the real binary on the real kernel, pods from a file, and processes in
cgroups shaped as the kubelet shapes them, or in containers made by runc.

Needs root. Each test has a tree of cgroups, a network namespace, a pin folder and an agent of its own,
and asks for its own namespaces of pods, so that the absence of an event can be asserted on a busy host.
*/

mod client;
mod node;
mod runc;
mod subscriber;
// Most of it is for the tests of the host tool.
#[allow(dead_code, unused_imports)]
#[path = "../root_tool/support/mod.rs"]
mod support;

mod containers;
mod ends;
mod limits;
mod losses;
mod names;
mod places;
mod signals;
mod streams;
mod tls;

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
    ("names", names::TESTS),
    ("containers", containers::TESTS),
    ("places", places::TESTS),
    ("streams", streams::TESTS),
    ("tls", tls::TESTS),
    ("limits", limits::TESTS),
    ("signals", signals::TESTS),
    ("losses", losses::TESTS),
    ("ends", ends::TESTS),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(support::ACTOR) => return support::act(),
        Some(subscriber::SUBSCRIBER) => return subscriber::subscribe(&arguments[1..]),
        _ => {}
    }
    let mut arguments = Arguments::from_args();
    // The ring and the CPUs are not each test's own.
    arguments.test_threads = Some(1);
    if !arguments.list && !rustix::process::geteuid().is_root() {
        eprintln!("root_agent: these tests need root: run them by 'make test'");
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
