//! BPF programs of the bench itself, compiled when it runs.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use libbpf_rs::{Link, Object, ObjectBuilder};

/// The object file.
pub fn compile(source: &str) -> Result<Vec<u8>> {
    let mut clang = Command::new("clang")
        .args([
            "-target", "bpf", "-O2", "-g", "-x", "c", "-c", "-", "-o", "-",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run clang (apt-get install clang)")?;
    // So small a source fits in the pipe.
    clang
        .stdin
        .take()
        .context("no pipe")?
        .write_all(source.as_bytes())?;
    let output = clang.wait_with_output()?;
    ensure!(
        output.status.success(),
        "clang cannot compile a program of the bench"
    );
    Ok(output.stdout)
}

/// Programs that are attached, with their maps, as long as this is there.
pub struct Attached {
    pub object: Object,
    _links: Vec<Link>,
}

pub fn attach_all(object: &[u8]) -> Result<Attached> {
    let object = ObjectBuilder::default().open_memory(object)?.load()?;
    let links = object
        .progs_mut()
        .map(|program| {
            program
                .attach()
                .context("cannot attach a program of the bench")
        })
        .collect::<Result<_>>()?;
    Ok(Attached {
        object,
        _links: links,
    })
}
