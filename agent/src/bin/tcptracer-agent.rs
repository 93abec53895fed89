//! The node agent. Everything is in the library.

use std::process::ExitCode;

use tcptracer::daemon::{Args, Command, check, probe, run};

fn main() -> ExitCode {
    let args = Args::read();
    let result = match &args.command {
        Some(Command::Check(args)) => check(args),
        Some(Command::Probe(args)) => probe(args),
        None => run(&args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|e| {
        eprintln!("tcptracer-agent: {e:#}");
        ExitCode::FAILURE
    })
}
