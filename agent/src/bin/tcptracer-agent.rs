//! The node agent. It can be asked what its node offers; it does not trace yet.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tcptracer::check;

#[derive(Parser)]
#[command(
    name = "tcptracer-agent",
    version,
    about = "The agent of tcptracer on a node"
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say what this node offers: exit code 0 if tracing is complete, 3 if degraded, 1 if impossible
    Check(check::Args),
}

fn main() -> ExitCode {
    let Command::Check(args) = Args::parse().command;
    check::run(&args).unwrap_or_else(|e| {
        eprintln!("tcptracer-agent: {e:#}");
        ExitCode::FAILURE
    })
}
