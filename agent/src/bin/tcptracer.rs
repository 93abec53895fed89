//! `tcptracer(8)`. Everything is in the library.

use std::process::ExitCode;

use clap::Parser;
use tcptracer::host::{Args, run, say};

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            say(&format!("{e:#}"));
            ExitCode::FAILURE
        }
    }
}
