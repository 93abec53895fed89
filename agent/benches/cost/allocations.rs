//! How often a program that is linked with glibc allocates memory: by a library that is loaded into it and counts.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

const SOURCE: &str = include_str!("allocations.c");

/// The library.
pub struct Allocations {
    folder: TempDir,
}

impl Allocations {
    /// Compiles it.
    pub fn new() -> Result<Self> {
        let folder = TempDir::new().context("cannot make a folder")?;
        let source = folder.path().join("allocations.c");
        fs::write(&source, SOURCE)?;
        let status = Command::new("cc")
            .args(["-O2", "-fno-builtin", "-shared", "-fPIC", "-o"])
            .arg(folder.path().join("allocations.so"))
            .arg(source)
            .status()
            .context("cannot run cc (apt-get install gcc)")?;
        ensure!(
            status.success(),
            "cc cannot compile the counter of allocations"
        );
        Ok(Self { folder })
    }

    /// For a program that is still to be started.
    pub fn counter(&self, name: &str) -> Result<Counter> {
        let file = self.folder.path().join(name);
        fs::write(&file, 0_u64.to_ne_bytes())?;
        Ok(Counter {
            library: self.folder.path().join("allocations.so"),
            file,
        })
    }
}

/// Of one program.
pub struct Counter {
    library: PathBuf,
    file: PathBuf,
}

impl Counter {
    /// Has it count what the command allocates.
    pub fn attach(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("TCPTRACER_BENCH_ALLOCATIONS", &self.file);
    }

    /// Up to now.
    pub fn count(&self) -> Result<u64> {
        let bytes = fs::read(&self.file)?;
        Ok(u64::from_ne_bytes(
            bytes[..].try_into().context("no count")?,
        ))
    }
}
