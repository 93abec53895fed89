/*!
What really happens on this kernel, and exactly what the tracer says of it.

One binary that needs no other file, so that it runs on other kernels as well: it is the tests and,
started as `actor`, also the processes that the tests watch. Needs root, BTF and tracefs, and fails
without. What the kernel itself does not have, say MPTCP, cannot happen on it: such a scenario asserts
that the kernel refuses it, and counts as ignored. With `--ignored` those run that need netem.
*/

mod actor;
mod cases;
mod ring;
mod trace;
mod world;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use world::Absent;

fn main() -> ExitCode {
    if let Some(role) = actor::role_of_this_process() {
        return actor::run(&role);
    }
    let mut args = Arguments::from_args();
    // The tracer sees the whole host: one at a time.
    args.test_threads = Some(1);
    let mut trials: Vec<_> = cases::all().into_iter().map(trial).collect();
    trials.extend(
        cases::OPTIONAL
            .iter()
            .map(|&case| trial(case).with_ignored_flag(true)),
    );
    libtest_mimic::run(&args, trials).exit_code()
}

fn trial((name, case): cases::Case) -> Trial {
    Trial::ignorable_test(format!("root::{name}"), move || match case() {
        Ok(()) => Ok(Completion::Completed),
        Err(e) => match e.downcast::<Absent>() {
            Ok(absent) => Ok(Completion::ignored_with(absent.to_string())),
            Err(e) => Err(Failed::from(format!("{e:#}"))),
        },
    })
}
