//! Compiles `bpf/` into a skeleton in `OUT_DIR`, and nothing else.

use std::env;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

const SOURCE: &str = "bpf/tcptracer.bpf.c";

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let here = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");

    println!("cargo:rerun-if-changed=bpf");
    SkeletonBuilder::new()
        .source(SOURCE)
        .clang_args([
            "-Ibpf",
            "-mcpu=v3",
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",
            "-Werror",
            // The object names its sources; it is the same wherever they are.
            &format!("-fdebug-prefix-map={here}=."),
        ])
        .build_and_generate(out.join("tcptracer.skel.rs"))
        .unwrap_or_else(|e| panic!("cannot build {SOURCE} (is clang installed?): {e:?}"));
}
