//! `tcptracer-agent check`: what it says is what tracing then does.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;
use tcptracer_testing::check::{assert_exit_code, hook, json, requirement};
use tcptracer_testing::{
    Actor, Cgroup, Tool, assert_no_pins, cover, mount_points, own_mounts, wait_until,
};

tcptracer_testing::tests![
    the_agent_needs_more,
    it_leaves_nothing_behind,
    without_bpffs_the_agent_is_impossible,
    without_cgroups_the_agent_is_impossible,
    without_ptrace_the_agent_is_degraded,
    without_processes_the_agent_is_degraded,
    in_a_pid_namespace_of_its_own_the_agent_is_degraded,
    the_agent_counts_containers_and_tries_one,
    the_agent_reads_its_variables,
];

const AGENT: &str = env!("CARGO_BIN_EXE_tcptracer-agent");

const NO_MOUNT_NAMESPACES: &str = "the mount namespaces of containers are not known: mntnsmap stays empty, and \
    processes that left the cgroup of their container are not counted to it";

/// What the host tool reports on the same host.
fn tool() -> Value {
    let output = Tool::command().args(["check", "-o", "json"]).output();
    json(&output.expect("the tool runs"))
}

/// What the agent says, which is checked to be one object and the exit code that belongs to it.
#[track_caller]
fn agent_by(command: &mut Command, args: &[&str]) -> (Output, Value) {
    let output = command
        .args(["check", "-o", "json"])
        .args(args)
        .output()
        .expect("the agent runs");
    let report = json(&output);
    assert_exit_code(&output, &report);
    (output, report)
}

#[track_caller]
fn agent(args: &[&str]) -> (Output, Value) {
    agent_by(&mut Command::new(AGENT), args)
}

/// The agent itself, which has to end by itself: its exit code, and what it says last.
fn agent_starts(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(AGENT)
        .args(["--pods", "file:/gone", "--http-listen", "127.0.0.1:0"])
        .args(["--grpc-listen", "127.0.0.1:0", "--log", "error"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the agent runs");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    (output.status.code(), said)
}

fn the_agent_needs_more() {
    // With containers of its own, which are none.
    let host = Cgroup::new();
    let (_, report) = agent(&["--cgroupfs", host.path().to_str().expect("UTF-8")]);
    assert_eq!(report["verdict"], "complete", "{report}");
    assert_eq!(report["summary"], "every connection is traced");
    let requirements = report["requirements"].as_array().expect("requirements");
    let names: Vec<_> = requirements.iter().map(|r| r["name"].clone()).collect();
    let expected =
        "BTF,CAP_BPF,CAP_PERFMON,tracefs,CAP_SYS_PTRACE,bpffs,processes,pid namespace,cgroups";
    assert_eq!(names, expected.split(',').collect::<Vec<_>>());
    assert!(
        requirements.iter().all(|r| r["present"] == true),
        "{report}"
    );
    assert_eq!(requirement(&report, "bpffs").1, "/sys/fs/bpf/tcptracer");
    assert_eq!(requirement(&report, "processes").1, "/proc");

    // Beside these two the same hooks.
    let mut hooks = report["hooks"].as_array().expect("hooks").clone();
    for name in ["tp_btf/cgroup_mkdir", "tp_btf/cgroup_rmdir"] {
        assert_eq!(hook(&report, name)["state"], "used");
        hooks.retain(|hook| hook["name"] != name);
    }
    assert_eq!(Value::from(hooks), tool()["hooks"]);
}

fn without_bpffs_the_agent_is_impossible() {
    own_mounts(|| {
        for path in mount_points("bpf") {
            unmount(&path, UnmountFlags::DETACH).expect("bpffs can be unmounted");
        }
        let (_, report) = agent(&[]);
        let why = "/sys/fs/bpf/tcptracer is not on a bpf file system: mount one (mount -t bpf bpf /sys/fs/bpf), or \
            name another place with --pin-dir";
        assert_eq!(requirement(&report, "bpffs"), (false, why));
        assert_eq!(report["verdict"], "impossible");
        assert_eq!(report["summary"], format!("bpffs: {why}"));
        assert!(!Path::new("/sys/fs/bpf/tcptracer").exists());

        let (code, said) = agent_starts(&[]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("mount -t bpf"), "{said}");

        // For the host tool without the options that need it, it does not matter.
        let report = tool();
        assert!(!requirement(&report, "bpffs").0);
        assert_eq!(report["verdict"], "complete");
    });
}

fn without_cgroups_the_agent_is_impossible() {
    own_mounts(|| {
        cover(Path::new("/sys/fs/cgroup"));
        // An agent may run here.
        mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), None).expect("a bpf file system");
        let (_, report) = agent(&[]);
        let why = "no cgroups are mounted at /sys/fs/cgroup: mount them (mount -t cgroup2 cgroup2 /sys/fs/cgroup), \
            or name the place with --cgroupfs";
        assert_eq!(requirement(&report, "cgroups"), (false, why));
        assert_eq!(report["verdict"], "impossible");
        assert_eq!(report["summary"], format!("cgroups: {why}"));
        // Without containers there is none to try.
        assert_eq!(requirement(&report, "processes"), (true, "/proc"));

        let (code, said) = agent_starts(&[]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(why), "{said}");
    });
}

fn without_ptrace_the_agent_is_degraded() {
    let host = Cgroup::new();
    let mut command = Command::new("setpriv");
    command.args([
        "--inh-caps=-sys_ptrace",
        "--bounding-set=-sys_ptrace",
        AGENT,
    ]);
    let root = host.path().to_str().expect("UTF-8");
    let (output, report) = agent_by(&mut command, &["--cgroupfs", root]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(
        requirement(&report, "CAP_SYS_PTRACE"),
        (
            false,
            "add it: without, the namespaces of others are hidden"
        )
    );
    assert_eq!(report["summary"], NO_MOUNT_NAMESPACES);
}

fn without_processes_the_agent_is_degraded() {
    let host = Cgroup::new();
    let root = host.path().to_str().expect("UTF-8");
    let (output, report) = agent(&["--proc", "/sys", "--cgroupfs", root]);
    assert_eq!(output.status.code(), Some(3));
    let why = "none are seen at /sys: mount the host's /proc there, or name the place with --proc";
    assert_eq!(requirement(&report, "processes"), (false, why));
    assert_eq!(report["summary"], NO_MOUNT_NAMESPACES);
}

/// Whether it shows the host's processes at `/proc` or its own only.
fn in_a_pid_namespace_of_its_own_the_agent_is_degraded() {
    // Without containers, whose mount namespaces could not be told either.
    let host = Cgroup::new();
    let root = host.path().to_str().expect("UTF-8");
    for options in [
        &["--pid", "--fork"][..],
        &["--pid", "--fork", "--mount-proc"],
    ] {
        let mut command = Command::new("unshare");
        command.args(options).arg(AGENT);
        let (output, report) = agent_by(&mut command, &["--cgroupfs", root]);
        assert_eq!(output.status.code(), Some(3), "{report}");
        let why = "it is not the host's: run the agent with hostPID";
        assert_eq!(requirement(&report, "pid namespace"), (false, why));
        assert_eq!(
            report["summary"],
            "connections and listeners that are there before the start are not known: the kernel lists the sockets \
             of the agent's own pid namespace, which is not the host's"
        );
    }
}

/// A part of the hierarchy stands for a host, so that its containers are the only ones.
fn the_agent_counts_containers_and_tries_one() {
    let host = Cgroup::new();
    let root = host.path().to_str().expect("UTF-8");
    let (_, report) = agent(&["--cgroupfs", root]);
    let none = format!("v2 at {root}, of which only a part is seen, no containers of pods yet");
    assert_eq!(requirement(&report, "cgroups"), (true, &none[..]));

    let container =
        "kubepods/pod0cafe000-1dea-4add-9bad-00000000beef/".to_owned() + &"0".repeat(64);
    let folder = host.path().join(&container);
    fs::create_dir_all(&folder).expect("cgroups can be made");
    let some = format!(
        "v2 at {root}, of which only a part is seen, containers of pods: 1, driver cgroupfs"
    );
    // One in the mounts of the host tells nothing of them, one in its own does.
    let in_hosts: fn() -> Actor = || Actor::here("main");
    let in_own: fn() -> Actor = || own_mounts(|| Actor::here("main"));
    for (process, is_found) in [(in_hosts, false), (in_own, true)] {
        let process = process();
        fs::write(folder.join("cgroup.procs"), process.pid().to_string()).expect("it can be moved");

        let (output, report) = agent(&["--cgroupfs", root]);
        drop(process);
        assert_eq!(requirement(&report, "cgroups"), (true, &some[..]));
        assert_eq!(requirement(&report, "processes").0, is_found, "{report}");
        assert_eq!(output.status.code(), Some(if is_found { 0 } else { 3 }));
    }
    for path in Path::new(&container)
        .ancestors()
        .filter(|p| *p != Path::new(""))
    {
        wait_until("the cgroup empties", || {
            fs::remove_dir(host.path().join(path)).is_ok()
        });
    }
}

fn the_agent_reads_its_variables() {
    for (variable, name) in [
        ("TCPTRACER_PIN_DIR", "bpffs"),
        ("TCPTRACER_CGROUPFS", "cgroups"),
        ("TCPTRACER_PROC", "processes"),
    ] {
        let (_, report) = agent_by(Command::new(AGENT).env(variable, "/dev"), &[]);
        let (present, detail) = requirement(&report, name);
        assert!(!present && detail.contains("/dev"), "{detail}");
    }
}

/// A folder that is not there is not made.
fn it_leaves_nothing_behind() {
    assert_no_pins(|| {
        let folder = mount_points("bpf").swap_remove(0).join("none/below");
        let folder = folder.to_str().expect("UTF-8");
        assert!(requirement(&agent(&["--pin-dir", folder]).1, "bpffs").0);
    });
}
