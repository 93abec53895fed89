//! What this kernel makes of our hooks.

use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;
use tcptracer_testing::program;

#[derive(Deserialize)]
struct Report {
    hooks: Vec<Hook>,
}

#[derive(Deserialize)]
struct Hook {
    name: String,
    state: String,
}

/// Says so if tracepoints of system calls have to do to see who accepts, which make every system call dearer.
pub fn print_refusals() -> Result<()> {
    let output = Command::new(program("tcptracer"))
        .args(["check", "-o", "json"])
        .output()
        .context("cannot run tcptracer check")?;
    let report: Report = serde_json::from_slice(&output.stdout).context("tcptracer check")?;
    let used = report.hooks.iter().filter(|hook| hook.state == "used");
    let names = used.map(|hook| hook.name.as_str());
    let of_calls: Vec<&str> = names
        .filter(|name| name.starts_with("tp/syscalls/sys_exit_accept"))
        .collect();
    if !of_calls.is_empty() {
        println!(
            "This kernel refuses trampolines: {} have to do, and every system call takes the slow way.",
            of_calls.join(", ")
        );
    }
    Ok(())
}
