/*!
The product on a real cluster of two nodes, as a user meets it: installed by Helm from the chart and the image, used by
`kubectl tcptracer`. `scripts/e2e.sh` brings the cluster, the image and the programs.

The release and the pods that talk to each other are made once; every test asks for events of its own connections and
leaves everything as it was. Nothing else traces meanwhile: a watch is known to be live by the agents' subscribers.

| variable | |
|---|---|
| `KUBECONFIG` | the cluster |
| `E2E_IMAGE` | the agent's image, `REPOSITORY:TAG`, which every node has or can pull |
| `E2E_PODS_IMAGE` | an image with busybox |
| `E2E_CLUSTER` | a program that stops and starts parts of the cluster (e2e/cluster/cluster.sh); without it the tests that need it are ignored, and say so |
*/

mod cases;
mod cluster;
mod plugin;
mod release;
mod world;

use std::panic;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use crate::release::Release;
use crate::world::World;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // There is one cluster.
    arguments.test_threads = Some(1);
    let trials = cases::ALL.iter().map(|case| {
        let ignored = case.control && cluster::control().is_none();
        let body = case.body;
        let trial = Trial::test(case.name, move || {
            // What the cluster is like tells most at the time of a failure, and the failures come last on stderr.
            panic::catch_unwind(body).unwrap_or_else(|panic| {
                cluster::diagnose();
                panic::resume_unwind(panic)
            });
            Ok(())
        });
        trial.with_ignored_flag(ignored)
    });
    let trials: Vec<_> = trials.collect();
    if arguments.list {
        libtest_mimic::run(&arguments, trials).exit();
    }
    let release = Release::install();
    let world = World::make();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(world);
    drop(release);
    conclusion.exit_code()
}
