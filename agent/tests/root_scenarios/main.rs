/*!
What really happens on this kernel, and exactly what the tracer says of it.

One binary that needs no other file, so that it runs on other kernels as well: it is the tests and,
started as `actor`, also the processes that the tests watch. Needs root, BTF and tracefs, and fails
without.
*/

mod actor;
mod cases;
mod ring;
mod trace;
mod world;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    if let Some(role) = actor::role_of_this_process() {
        return actor::run(&role);
    }
    let mut args = Arguments::from_args();
    // The tracer sees the whole host: one at a time.
    args.test_threads = Some(1);
    let trials = cases::all()
        .into_iter()
        .map(|(name, case)| {
            Trial::test(format!("root::{name}"), move || {
                case().map_err(|e| Failed::from(format!("{e:#}")))
            })
        })
        .collect();
    libtest_mimic::run(&args, trials).exit_code()
}
