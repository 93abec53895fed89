//! `tcptracer(8)`. Everything is in the library.

use std::process::ExitCode;

use clap::Parser;
use tcptracer::check;
use tcptracer::tool::{Args, Command, run, say};

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match &args.command {
        Some(Command::Check(args)) => check::run(args),
        None => run(&args),
    };
    result.unwrap_or_else(|e| {
        say(&format!("{e:#}"));
        ExitCode::FAILURE
    })
}
