/*!
The agent as its clients meet it: the real binary on the real kernel, pods from a file, and processes in
cgroups shaped as the kubelet shapes them, or in containers made by runc.

Needs root. Each test has a tree of cgroups, a network namespace, a pin folder and an agent of its own,
which sees no other cgroups unless that is what is tested, and asks for its own namespaces of pods, so that
the absence of an event can be asserted on a busy host: by what comes next, or by the end of the stream.
What strangers lose is passed over.
*/

mod check;
mod client;
mod containers;
mod ends;
mod idle;
mod limits;
mod losses;
mod names;
mod node;
mod places;
mod runc;
mod selection;
mod signals;
mod streams;
mod subscriber;
mod tls;

use std::env;
use std::process::ExitCode;

use tcptracer_testing::{Test, run};

const MODULES: &[(&str, &[Test])] = &[
    ("names", names::TESTS),
    ("containers", containers::TESTS),
    ("places", places::TESTS),
    ("streams", streams::TESTS),
    ("tls", tls::TESTS),
    ("limits", limits::TESTS),
    ("signals", signals::TESTS),
    ("losses", losses::TESTS),
    ("selection", selection::TESTS),
    ("ends", ends::TESTS),
    ("idle", idle::TESTS),
    ("check", check::TESTS),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(tcptracer_testing::ACTOR) => return tcptracer_testing::act(),
        Some(subscriber::SUBSCRIBER) => return subscriber::subscribe(&arguments[1..]),
        _ => {}
    }
    run("root_agent", MODULES)
}
