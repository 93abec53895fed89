//! The node agent. Everything is in the library.

use std::process::ExitCode;

use tcptracer_agent::{Args, Command, health, preflight, run};

fn main() -> ExitCode {
    let args = Args::read();
    let result = match &args.command {
        Some(Command::Check(args)) => preflight::run(args),
        Some(Command::Probe(args)) => health::ask(args),
        None => run(&args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|e| {
        eprintln!("tcptracer-agent: {e:#}");
        ExitCode::FAILURE
    })
}
