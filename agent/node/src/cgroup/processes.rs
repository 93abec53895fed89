//! Which processes are in which container, as `/proc` tells.
//!
//! A cgroup's own list has the ids of the reader's pid namespace, and none of the processes that are not in it.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process;

use procfs::ProcResult;
use procfs::process::{Process, all_processes_with_root};

use super::path::container;

/// The inode of the initial pid namespace, `PROC_PID_INIT_INO`: the same on every kernel.
const INITIAL: u64 = 0xefff_fffc;

/// Processes of a container to look at.
pub(super) const MAX_PROCESSES: usize = 8;

/// Whether `proc` shows processes by the ids that they have for us.
pub fn shows_our_pids(proc: &Path) -> bool {
    open(proc, "self").is_ok_and(|own| own.pid.unsigned_abs() == process::id())
}

/// Whether the processes that we are told of are all of the host's: we are in its pid namespace or, with kind, in that of
/// the container that the node is.
pub fn shares_pids_with_host(proc: &Path) -> bool {
    is_in_initial_pid_namespace() || (shows_our_pids(proc) && !is_first_process_with_us(proc))
}

fn is_in_initial_pid_namespace() -> bool {
    let namespace = Process::myself().and_then(|this| this.open_relative("ns/pid"));
    namespace.is_ok_and(|file| file.metadata().is_ok_and(|m| m.ino() == INITIAL))
}

/// The first process of a host is not in our container; that of a namespace of our own is.
fn is_first_process_with_us(proc: &Path) -> bool {
    let cgroups = |process: &str| -> Option<Vec<_>> {
        let all = open(proc, process).ok()?.cgroups().ok()?.into_iter();
        Some(all.map(|its| (its.hierarchy, its.pathname)).collect())
    };
    cgroups("1") == cgroups("self")
}

/// A few processes of each container, by the container's id. Every process is looked at.
pub fn processes_of<'a>(proc: &Path, ids: &HashSet<&'a str>) -> HashMap<&'a str, Vec<u32>> {
    let mut found: HashMap<&str, Vec<u32>> = HashMap::new();
    let processes = all_processes_with_root(proc).into_iter().flatten();
    for process in processes.flatten() {
        let Ok(cgroups) = process.cgroups() else {
            continue;
        };
        let mut paths = cgroups.0.iter().map(|cgroup| cgroup.pathname.as_str());
        if let Some(id) = paths.find_map(|path| container_in(path, ids)) {
            let pids = found.entry(id).or_default();
            if pids.len() < MAX_PROCESSES {
                pids.push(process.pid.unsigned_abs());
            }
        }
    }
    found
}

/// The outermost of the containers whose ids are in a path. Where the reader has a root of its own, the
/// path has another beginning, and the same end.
fn container_in<'a>(path: &str, ids: &HashSet<&'a str>) -> Option<&'a str> {
    path.split('/')
        .find_map(|name| ids.get(container(name)?).copied())
}

/// What `proc` shows of a process, which is named by its id or `self`. As long as it is held, it is never another
/// process of the same id.
pub(super) fn open(proc: &Path, process: impl Display) -> ProcResult<Process> {
    Process::new_with_root(proc.join(process.to_string()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn processes_are_found_by_the_container_in_their_cgroup() {
        let (a, b, c) = ("a".repeat(64), "b".repeat(64), "c".repeat(64));
        let proc = TempDir::new().expect("a folder for the test");
        let process = |pid: &str, cgroup: &str| {
            let folder = proc.path().join(pid);
            fs::create_dir(&folder).expect("a folder");
            fs::write(folder.join("cgroup"), cgroup).expect("a file");
        };
        process("1", "0::/init.scope\n");
        process(
            "20",
            &format!("4:memory:/kubepods/podx/{a}\n0::/kubepods/podx/{a}\n"),
        );
        process(
            "21",
            &format!("0::/../../podx/cri-containerd-{a}.scope/nested\n"),
        );
        process("30", &format!("4:memory:/kubepods/podx/{b}\n0::/\n"));
        process("40", &format!("0::/kubepods/podx/{c}\n"));
        process("41", &format!("0::/kubepods/podx/{b}/kubepods/pody/{a}\n"));
        process("self", &format!("0::/kubepods/podx/{a}\n"));
        fs::create_dir(proc.path().join("50")).expect("a folder of a process that has ended");

        let mut found = processes_of(proc.path(), &HashSet::from([a.as_str(), b.as_str()]));
        found.values_mut().for_each(|pids| pids.sort_unstable());
        let expected = [(a.as_str(), vec![20, 21]), (b.as_str(), vec![30, 41])];
        assert_eq!(found, expected.into());
    }

    #[test]
    fn another_pid_namespace_is_noticed() {
        assert!(shows_our_pids(Path::new("/proc")));
        let proc = TempDir::new().expect("a folder for the test");
        assert!(!shows_our_pids(proc.path()));
        let other = (process::id() + 1).to_string();
        symlink(other, proc.path().join("self")).expect("a link");
        assert!(!shows_our_pids(proc.path()));
    }

    #[test]
    fn the_first_process_of_a_host_is_not_with_us() {
        let proc = TempDir::new().expect("a folder for the test");
        let cgroup = |process: &str, cgroup: &str| {
            let folder = proc.path().join(process);
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join("cgroup"), cgroup).expect("a file");
        };
        symlink("20", proc.path().join("self")).expect("a link");
        cgroup("20", "0::/\n");
        cgroup("1", "0::/../../init.scope\n");
        assert!(!is_first_process_with_us(proc.path()));
        cgroup("1", "0::/\n");
        assert!(is_first_process_with_us(proc.path()));
    }
}
