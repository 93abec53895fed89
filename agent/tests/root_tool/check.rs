//! `tcptracer check`: what it says is what tracing then does.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output};

use procfs::process::all_processes;
use tcptracer_testing::check::{assert_exit_code, hook, json};
use tcptracer_testing::{
    Netns, Tool, assert_no_pins, cover, ids_of, mount_points, own_mounts, wait_until,
};

tcptracer_testing::tests![
    the_verdict_is_the_exit_code,
    the_text_says_the_same,
    without_tracefs_it_says_what_takes_its_place,
    without_capabilities_it_names_them,
    it_leaves_nothing_behind,
    other_options_are_refused,
];

fn check(args: &[&str]) -> Output {
    let output = Tool::command().arg("check").args(args).output();
    output.expect("the tool runs")
}

fn the_verdict_is_the_exit_code() {
    let output = check(&["-o", "json"]);
    let report = json(&output);
    assert_exit_code(&output, &report);
    assert_eq!(report["verdict"], "complete", "{report}");
    assert_eq!(hook(&report, "tp_btf/inet_sock_set_state")["state"], "used");
    for requirement in report["requirements"].as_array().expect("requirements") {
        assert_eq!(requirement["present"], true, "{requirement}");
    }
    // A host on which nothing is lost is not warned about anything.
    let netns = Netns::new();
    let tool = Tool::start(["-N", &netns.inode.to_string()]);
    tool.stop().quietly();
}

fn the_text_says_the_same() {
    let output = check(&[]);
    let report = json(&check(&["-o", "json"]));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    for part in ["requirements", "hooks"] {
        for item in report[part].as_array().expect("a list") {
            let name = item["name"].as_str().expect("a name");
            assert!(text.contains(name), "{name} is missing:\n{text}");
        }
    }
    assert!(
        text.ends_with("\ncomplete: every connection is traced\n"),
        "{text}"
    );
}

fn without_tracefs_it_says_what_takes_its_place() {
    own_mounts(|| {
        for path in ["debugfs", "tracefs"].into_iter().flat_map(mount_points) {
            cover(&path);
        }
        let output = check(&["-o", "json"]);
        let report = json(&output);
        assert_exit_code(&output, &report);
        let accept = hook(&report, "tp/syscalls/sys_exit_accept4");
        // It depends on the kernel whether something is left that says who accepts.
        match hook(&report, "fentry/security_sock_graft")["state"] == "used" {
            true => {
                assert_eq!(report["verdict"], "complete");
                assert_eq!(accept["state"], "not_needed");
            }
            false => {
                assert_eq!(report["verdict"], "impossible");
                assert_eq!(accept["state"], "missing");
                let summary = report["summary"].as_str().expect("a summary");
                assert!(summary.contains("mount -t tracefs"), "{summary}");
            }
        }
    });
}

fn without_capabilities_it_names_them() {
    let output = Command::new("setpriv")
        .args(["--inh-caps=-all", "--bounding-set=-all,+bpf"])
        .arg(env!("CARGO_BIN_EXE_tcptracer"))
        .args(["check", "--output", "json"])
        .output()
        .expect("setpriv runs");
    let report = json(&output);
    assert_exit_code(&output, &report);
    assert_eq!(report["verdict"], "impossible");
    let summary = report["summary"].as_str().expect("a summary");
    assert!(summary.contains("missing CAP_PERFMON"), "{summary}");
    let hook = hook(&report, "tp_btf/inet_sock_set_state");
    assert_eq!(hook["state"], "not_tried");
}

fn it_leaves_nothing_behind() {
    let before = programs();
    assert_no_pins(|| {
        check(&[]);
    });
    // The kernel frees them a moment later. Others may have theirs.
    wait_until("its programs are gone", || {
        let new = &programs() - &before;
        new.is_subset(&programs_of_processes())
    });
}

/// Ids of all our programs in the kernel.
fn programs() -> BTreeSet<u32> {
    libbpf_rs::query::ProgInfoIter::default()
        .filter(|p| p.name.as_bytes().starts_with(b"tt_"))
        .map(|p| p.id)
        .collect()
}

/// Ids of the programs that processes hold. What ends meanwhile is left out.
fn programs_of_processes() -> BTreeSet<u32> {
    let processes = all_processes().expect("the processes are seen").flatten();
    processes
        .flat_map(|process| ids_of(process.pid.cast_unsigned(), "prog_id:"))
        .collect()
}

fn other_options_are_refused() {
    for args in [
        &["check", "-t"][..],
        &["-t", "check"],
        &["check", "-o", "table"],
    ] {
        assert_eq!(Tool::run(args).status.code(), Some(2), "{args:?}");
    }
}
