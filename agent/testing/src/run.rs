//! How tests that need root are run.

use std::any::Any;
use std::panic::{self, resume_unwind};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Trial};

/// A test's name and its body, which panics if something is wrong.
pub type Test = (&'static str, fn());

/// Pairs functions with their names, as the `TESTS` of a module.
#[macro_export]
macro_rules! tests {
    ($($test:ident),+ $(,)?) => {
        #[allow(missing_docs)]
        pub const TESTS: &[$crate::Test] = &[$((stringify!($test), $test)),+];
    };
}

/// What the kernel does not have.
struct Absent(&'static str);

/// Ends a test as ignored: the kernel refuses to do what it is about.
pub fn absent(what: &'static str) -> ! {
    resume_unwind(Box::new(Absent(what)))
}

/// Runs the tests of all modules, one at a time: the ring and the CPUs are not each test's own. Without root they fail.
pub fn run(binary: &str, modules: &[(&str, &[Test])]) -> ExitCode {
    run_with_optional(binary, modules, &[])
}

/// The same, with tests that have to be asked for by `--ignored` or `--include-ignored`.
pub fn run_with_optional(
    binary: &str,
    modules: &[(&str, &[Test])],
    optional: &[(&str, &[Test])],
) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    if !arguments.list && !rustix::process::geteuid().is_root() {
        eprintln!("{binary}: these tests need root: run them by 'make test'");
        return ExitCode::FAILURE;
    }
    let optional = trials(optional).map(|trial| trial.with_ignored_flag(true));
    let trials = trials(modules).chain(optional).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trials(modules: &[(&str, &[Test])]) -> impl Iterator<Item = Trial> {
    let tests = modules
        .iter()
        .flat_map(|&(module, tests)| tests.iter().map(move |&test| (module, test)));
    tests.map(|(module, (test, body))| {
        let name = match module {
            "" => format!("root::{test}"),
            _ => format!("root::{module}::{test}"),
        };
        Trial::ignorable_test(name, move || {
            Ok(panic::catch_unwind(body).map_or_else(ignored, |()| Completion::Completed))
        })
    })
}

/// If that is why the test has ended.
fn ignored(panic: Box<dyn Any + Send>) -> Completion {
    match panic.downcast::<Absent>() {
        Ok(absent) => Completion::ignored_with(format!("this kernel has no {}", absent.0)),
        Err(panic) => resume_unwind(panic),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;

    use super::*;

    #[test]
    fn only_what_is_absent_is_ignored() {
        let absent: Box<dyn Any + Send> = Box::new(Absent("MPTCP"));
        assert!(matches!(
            ignored(absent),
            Completion::Ignored { reason: Some(why) } if why == "this kernel has no MPTCP"
        ));
        let failure: Box<dyn Any + Send> = Box::new("a failure");
        assert!(panic::catch_unwind(AssertUnwindSafe(|| ignored(failure))).is_err());
    }
}
