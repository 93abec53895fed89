//! What goes wrong: usage errors exit with 2, others with 1 and one line that says what to do.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use libbpf_rs::{MapType, ProgramHandle};

use rustix::io::{FdFlags, fcntl_setfd};

use tcptracer_testing::{Netns, Pin, Tool, cover, is_there, mount_points, own_mounts};

tcptracer_testing::tests![
    usage_errors_exit_with_2,
    a_missing_pin_is_not_created,
    a_missing_pin_in_a_missing_directory,
    a_path_that_is_not_on_a_bpf_file_system,
    a_missing_path_that_is_not_on_a_bpf_file_system,
    a_directory,
    a_map_that_is_not_a_hash,
    a_pinned_program_is_not_a_map,
    a_map_with_short_keys,
    without_privileges_cap_bpf_is_named,
    with_cap_bpf_only_cap_perfmon_is_named,
    few_capabilities_are_enough,
    a_missing_bpf_file_system_is_named,
    without_tracefs_the_mount_command_is_given,
    without_btf_the_file_is_named,
    a_full_device_is_an_error,
];

/// It ends with 1, has written nothing, and says all of this in one line.
#[track_caller]
fn assert_refused(mut tool: Tool, words: &[&str]) {
    let ended = tool.end();
    assert!(ended.rows.is_empty(), "{ended:?}");
    let line = ended.with_one_line(1);
    assert!(line.starts_with("tcptracer: "), "{line}");
    for word in words {
        assert!(line.contains(word), "'{word}' is missing: {line}");
    }
}

fn tool(args: &[&str]) -> Tool {
    Tool::spawn(Tool::command().args(args))
}

/// Both options refuse the path, naming themselves and it.
#[track_caller]
fn assert_path_refused(path: &Path, words: &[&str]) {
    let path = path.to_str().expect("the path is UTF-8");
    for option in ["--cgroupmap", "--mntnsmap"] {
        let words: Vec<&str> = [option, path].iter().chain(words).copied().collect();
        assert_refused(tool(&[option, path]), &words);
    }
}

fn usage_errors_exit_with_2() {
    let cases: [(&[&str], &str); 12] = [
        (&["-4", "-6"], "cannot be used with"),
        (&["-p", "abc"], "abc"),
        (&["-p", "-1"], "-1"),
        (&["-p"], "--pid"),
        (&["-N", "x"], "x"),
        (&["--no-such-option"], "--no-such-option"),
        (&["surplus"], "surplus"),
        (&["-o", "xml"], "xml"),
        (&["--ring-size", "5000"], "power of two"),
        (&["--ring-size", "2048"], "power of two"),
        (&["--duration", "0"], "--duration"),
        (&["--max-connections", "0"], "--max-connections"),
    ];
    for (args, word) in cases {
        let ended = Tool::run(args);
        assert_eq!(ended.status.code(), Some(2), "{args:?}: {ended:?}");
        assert!(ended.rows.is_empty(), "{args:?}: {ended:?}");
        assert!(
            ended.stderr.join("\n").contains(word),
            "{args:?}: {ended:?}"
        );
    }
}

fn a_missing_pin_is_not_created() {
    let path = Pin::free_path();
    assert_path_refused(&path, &["no map", "create it first"]);
    assert!(!is_there(&path), "a map has been created");
}

fn a_missing_pin_in_a_missing_directory() {
    let directory = Pin::free_path();
    assert_path_refused(&directory.join("map"), &["does not exist"]);
    assert!(!is_there(&directory), "a directory has been created");
}

fn a_path_that_is_not_on_a_bpf_file_system() {
    assert_path_refused(Path::new("/proc/self/stat"), &["not on a bpf file system"]);
    let binary = Path::new(env!("CARGO_BIN_EXE_tcptracer"));
    assert_path_refused(binary, &["not on a bpf file system"]);
}

fn a_missing_path_that_is_not_on_a_bpf_file_system() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-such-map");
    assert_path_refused(&path, &["does not exist", "not on a bpf file system"]);
    assert!(!is_there(&path), "something has been created");
}

fn a_directory() {
    let path = Pin::free_path();
    fs::create_dir(&path).expect("a directory can be made");
    let _removed = Removed(path.clone());
    assert_path_refused(&path, &["is a directory"]);
}

/// Removes the pin or the empty directory on drop.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0).or_else(|_| fs::remove_dir(&self.0));
    }
}

fn a_map_that_is_not_a_hash() {
    let pin = Pin::new(MapType::Array, 4, 8, 1);
    assert_path_refused(Path::new(pin.path()), &["not a hash", "Array"]);
}

fn a_pinned_program_is_not_a_map() {
    // Any program will do: one of another tool that runs.
    let other = Tool::start(NOTHING);
    let program = *other.programs().first().expect("it has programs");
    let path = Pin::free_path();
    let program = ProgramHandle::from_prog_id(program).expect("the program is there");
    program.pin(&path).expect("a program can be pinned");
    let _removed = Removed(path.clone());
    assert_path_refused(&path, &["not a pinned map"]);
}

fn a_map_with_short_keys() {
    let pin = Pin::new(MapType::Hash, 4, 4, 128);
    assert_path_refused(Path::new(pin.path()), &["4 bytes", "have to be 8"]);
}

/// Has it trace the connections of a namespace that there is not.
const NOTHING: [&str; 2] = ["-N", "1"];

/// The tool without any capability of root's but these.
fn root_with(capabilities: &str) -> Tool {
    let mut command = Command::new("setpriv");
    command
        .arg("--inh-caps=-all")
        .arg(format!("--bounding-set=-all{capabilities}"))
        .arg(env!("CARGO_BIN_EXE_tcptracer"));
    Tool::spawn(command.args(NOTHING))
}

/// The tool as somebody who has these capabilities.
fn nobody_with(capabilities: &str) -> Tool {
    // Nobody may be unable to enter the directories above the binary, so it is opened before.
    let binary = fs::File::open(env!("CARGO_BIN_EXE_tcptracer")).expect("the tool is there");
    fcntl_setfd(&binary, FdFlags::empty()).expect("a descriptor can be handed down");
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(format!("--inh-caps=-all{capabilities}"))
        .arg(format!("--ambient-caps=-all{capabilities}"))
        .arg(format!("/proc/self/fd/{}", binary.as_raw_fd()));
    Tool::spawn(command.args(NOTHING))
}

fn without_privileges_cap_bpf_is_named() {
    let words = ["missing CAP_BPF", "run as root"];
    assert_refused(root_with(""), &words);
    assert_refused(nobody_with(""), &words);
}

fn with_cap_bpf_only_cap_perfmon_is_named() {
    assert_refused(root_with(",+bpf"), &["missing CAP_PERFMON"]);
    assert_refused(nobody_with(",+bpf"), &["missing CAP_PERFMON"]);
}

fn few_capabilities_are_enough() {
    for mut tool in [
        root_with(",+bpf,+perfmon"),
        root_with(",+sys_admin"),
        nobody_with(",+bpf,+perfmon,+dac_read_search"),
    ] {
        tool.wait_for_header();
        tool.stop().quietly();
    }
}

/// Everything of these types disappears from the calling thread's sight.
fn hide(kinds: &[&str]) {
    for kind in kinds {
        for path in mount_points(kind) {
            cover(&path);
        }
    }
}

fn without_tracefs_the_mount_command_is_given() {
    own_mounts(|| {
        hide(&["debugfs", "tracefs", "bpf"]);
        assert_refused(
            tool(&[]),
            &["tracefs", "mount -t tracefs tracefs /sys/kernel/tracing"],
        );
    });
}

fn a_missing_bpf_file_system_is_named() {
    let path = Pin::free_path();
    own_mounts(|| {
        hide(&["bpf"]);
        assert_path_refused(&path, &["does not exist", "not on a bpf file system"]);
    });
}

fn without_btf_the_file_is_named() {
    own_mounts(|| {
        cover(Path::new("/sys/kernel/btf"));
        assert_refused(
            tool(&[]),
            &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"],
        );
    });
}

fn a_full_device_is_an_error() {
    let netns = Netns::new();
    let full = fs::File::options()
        .write(true)
        .open("/dev/full")
        .expect("the device that is full");
    let output = Tool::command()
        .args(["-N", &netns.inode.to_string()])
        .stdout(full)
        .output()
        .expect("the tool runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("cannot write"), "{stderr}");
}
