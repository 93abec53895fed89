//! `tcptracer(8)`. Everything is in the library.

use std::process::ExitCode;

use clap::Parser;
use tcptracer::host::{Args, run};

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("tcptracer: {e:#}");
            ExitCode::FAILURE
        }
    }
}
