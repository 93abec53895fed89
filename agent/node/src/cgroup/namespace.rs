//! The mount namespace of a container.

use std::fs::File;
use std::iter;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use procfs::process::Process;

use super::processes::open;

/// kthreadd, which never leaves the host's namespaces. That of process 1 may be refused even to root.
const KTHREADD: u32 = 2;

/// The first process, of the host or of the container that a node is with kind.
const INIT: u32 = 1;

/// How far up to look for a process outside of a container: it may nest its own as it likes.
const MAX_ANCESTORS: usize = 64;

/// A mount namespace. As long as it is held, its inode is no other's.
#[derive(Debug)]
pub struct MountNamespace {
    /// Its inode, as the kernel reports it of processes.
    pub inode: u64,
    _file: File,
}

impl MountNamespace {
    /// That of a process. `Process::namespaces` looks at all of them: for 5,000 processes it takes 299 ms in place of 52,
    /// and it fails for those that have no `pid_for_children` yet.
    fn of(process: &Process) -> Option<Self> {
        let file = process.open_relative("ns/mnt").ok()?;
        let inode = file.metadata().ok()?.ino();
        Some(Self { inode, _file: file })
    }
}

/// Of the processes in the container whose cgroup has this path, the namespace of the first that has arrived
/// there. `proc` is where the host's processes are seen. A container's first process is in the host's or its
/// runtime's for a moment, which may be another.
pub fn mount_namespace(
    proc: &Path,
    path: &str,
    pids: &[u32],
    host: Option<u64>,
) -> Option<MountNamespace> {
    pids.iter().find_map(|pid| {
        let process = open(proc, pid).ok()?;
        let namespace = MountNamespace::of(&process)?;
        // Its id may have been another's when it was listed. What follows cannot be told if it has ended since.
        let has_arrived = is_inside(&process, path)
            && Some(namespace.inode) != host
            && !is_shared_outside(proc, path, parent(&process)?, namespace.inode);
        has_arrived.then_some(namespace)
    })
}

/// Whether the children of this process have their namespace from without the container: from the nearest ancestor
/// there.
fn is_shared_outside(proc: &Path, path: &str, parent_pid: i32, inode: u64) -> bool {
    let above = |process: &Process| open(proc, parent(process)?).ok();
    iter::successors(open(proc, parent_pid).ok(), above)
        .take(MAX_ANCESTORS)
        .take_while(|process| MountNamespace::of(process).is_some_and(|its| its.inode == inode))
        .any(|process| !is_inside(&process, path))
}

/// Whether the process is in the cgroup that has this path, or below.
fn is_inside(process: &Process, path: &str) -> bool {
    // Where the reader has a root of its own the path has another beginning, and the same end.
    let name = path.rsplit('/').next().unwrap_or(path);
    let cgroups = process.cgroups();
    cgroups.is_ok_and(|all| all.0.iter().any(|cgroup| cgroup.pathname.contains(name)))
}

/// The process' parent, if the process is there; 0 if it has none that is seen. `Process::status` tells it too, but takes
/// 167 ms for 5,000 processes in place of 65.
fn parent(process: &Process) -> Option<i32> {
    Some(process.stat().ok()?.ppid)
}

/// The inode of the host's mount namespace, if it may be known. Where kthreadd is not seen the host is itself
/// a container, whose first process has its namespace; another process may be the second there.
pub fn host_mount_namespace(proc: &Path) -> Option<u64> {
    let is_kthreadd = |second: &Process| second.stat().is_ok_and(|stat| stat.comm == "kthreadd");
    let process = match open(proc, KTHREADD) {
        Ok(second) if is_kthreadd(&second) => second,
        _ => open(proc, INIT).ok()?,
    };
    Some(MountNamespace::of(&process)?.inode)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;

    /// The container's cgroup, as it is, and as one with a root of its own sees it.
    const PATH: &str = "/kubepods/pod/0123";
    const SEEN: &str = "/../../pod/0123";

    /// Processes and the files that stand for their mount namespaces, in place of /proc.
    struct Proc(TempDir);

    impl Proc {
        fn new() -> Self {
            Self(TempDir::new().expect("a directory for the test"))
        }

        /// The file that stands for the mount namespace of a process.
        fn link(&self, pid: u32) -> PathBuf {
            self.0.path().join(format!("{pid}/ns/mnt"))
        }

        /// Writes what the process is called, and whose child it is.
        fn stat(&self, pid: u32, comm: &str, parent: u32) {
            let rest = " 0".repeat(48);
            let path = self.0.path().join(format!("{pid}/stat"));
            fs::write(path, format!("{pid} ({comm}) S {parent}{rest}\n")).expect("a status");
        }

        /// Makes a process of the container in a namespace of its own, and returns the namespace.
        fn process(&self, pid: u32, comm: &str) -> u64 {
            let ns = self.link(pid);
            fs::create_dir_all(ns.parent().expect("it has a folder")).expect("a folder");
            self.stat(pid, comm, 0);
            fs::write(
                self.0.path().join(format!("{pid}/cgroup")),
                format!("0::{SEEN}\n"),
            )
            .expect("a cgroup");
            fs::write(&ns, "").expect("a namespace");
            fs::metadata(&ns).expect("the namespace").ino()
        }

        fn first_of(&self, pids: &[u32], host: Option<u64>) -> Option<u64> {
            mount_namespace(self.0.path(), PATH, pids, host).map(|found| found.inode)
        }

        /// Makes it another's child, in a cgroup, and in the same namespace if it has none of its own.
        fn child(&self, pid: u32, parent: u32, cgroup: &str) {
            let folder = self.0.path().join(pid.to_string());
            let ns = self.link(pid);
            fs::create_dir_all(folder.join("ns")).expect("a folder");
            if !ns.exists() {
                fs::hard_link(self.link(parent), ns).expect("the parent's namespace");
            }
            self.stat(pid, "x", parent);
            fs::write(folder.join("cgroup"), format!("0::{cgroup}\n")).expect("a cgroup");
        }
    }

    #[test]
    fn the_first_namespace_that_is_not_the_hosts_counts() {
        let proc = Proc::new();
        let [first, second, third] = [10, 11, 12].map(|pid| proc.process(pid, "x"));

        assert_eq!(proc.first_of(&[10, 11, 12], None), Some(first));
        assert_eq!(proc.first_of(&[10, 11, 12], Some(first)), Some(second));
        assert_eq!(proc.first_of(&[12, 11], Some(first)), Some(third));
        assert_eq!(proc.first_of(&[10], Some(first)), None);
        assert_eq!(proc.first_of(&[], None), None);
    }

    #[test]
    fn processes_that_are_gone_are_passed_over() {
        let proc = Proc::new();
        let inode = proc.process(10, "x");

        assert_eq!(proc.first_of(&[99, 10], None), Some(inode));
        assert_eq!(proc.first_of(&[99], None), None);
    }

    #[test]
    fn a_namespace_from_without_the_container_does_not_count() {
        let proc = Proc::new();
        let host = proc.process(1, "systemd");
        proc.process(20, "runc");
        proc.child(20, 1, "/system.slice/runtime.service");
        proc.child(21, 20, SEEN);
        proc.child(22, 21, SEEN);
        assert_eq!(proc.first_of(&[21, 22], Some(host)), None);

        // It has arrived, and runs others, one in a cgroup below.
        let inode = proc.process(23, "x");
        proc.child(23, 20, SEEN);
        proc.child(24, 23, &format!("{SEEN}/nested"));
        proc.child(25, 24, SEEN);
        for pid in [23, 24, 25] {
            assert_eq!(proc.first_of(&[pid], Some(host)), Some(inode));
        }
        assert_eq!(proc.first_of(&[21, 22, 25], Some(host)), Some(inode));
    }

    #[test]
    fn a_process_that_ends_meanwhile_is_passed_over() {
        let proc = Proc::new();
        proc.process(10, "x");
        fs::remove_file(proc.0.path().join("10/stat")).expect("it had a status");
        assert_eq!(proc.first_of(&[10], None), None);
    }

    #[test]
    fn who_has_the_id_of_a_process_that_has_ended_is_passed_over() {
        let proc = Proc::new();
        proc.process(10, "x");
        proc.child(10, 1, "/kubepods/pod/4567");
        let inode = proc.process(11, "x");
        assert_eq!(proc.first_of(&[10], None), None);
        assert_eq!(proc.first_of(&[10, 11], None), Some(inode));
    }

    #[test]
    fn kthreadd_is_on_the_host() {
        let proc = Proc::new();
        proc.process(1, "systemd");
        let inode = proc.process(2, "kthreadd");

        assert_eq!(host_mount_namespace(proc.0.path()), Some(inode));
    }

    #[test]
    fn without_kthreadd_the_first_process_is_on_the_host() {
        let proc = Proc::new();
        let inode = proc.process(1, "systemd");
        assert_eq!(host_mount_namespace(proc.0.path()), Some(inode));

        proc.process(2, "entrypoint");
        assert_eq!(host_mount_namespace(proc.0.path()), Some(inode));
    }

    #[test]
    fn the_host_is_not_known_where_nothing_may_be_read() {
        let proc = Proc::new();
        assert_eq!(host_mount_namespace(proc.0.path()), None);
    }
}
