//! The mount namespace of a container.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// kthreadd, which never leaves the host's namespaces. That of process 1 may be refused even to root.
const KTHREADD: u32 = 2;

/// The first process, of the host or of the container that a node is with kind.
const INIT: u32 = 1;

/// A mount namespace. As long as it is held, its inode is no other's.
#[derive(Debug)]
pub struct MountNamespace {
    /// Its inode, as the kernel reports it of processes.
    pub inode: u64,
    _file: File,
}

fn link(proc: &Path, pid: u32) -> PathBuf {
    proc.join(pid.to_string()).join("ns/mnt")
}

/// Of the processes in a container, the namespace of the first that is in another than the host's. `proc`
/// is where the host's processes are seen. A container's first process is in the host's for a moment.
pub fn mount_namespace(proc: &Path, pids: &[u32], host: Option<u64>) -> Option<MountNamespace> {
    pids.iter().find_map(|pid| {
        let file = File::open(link(proc, *pid)).ok()?;
        let inode = file.metadata().ok()?.ino();
        (Some(inode) != host).then_some(MountNamespace { inode, _file: file })
    })
}

/// The inode of the host's mount namespace, if it may be known. Where kthreadd is not seen the host is itself
/// a container, whose first process has its namespace; another process may be the second there.
pub fn host_mount_namespace(proc: &Path) -> Option<u64> {
    let second = fs::read(proc.join(KTHREADD.to_string()).join("comm")).ok();
    let pid = match second.as_deref() {
        Some(b"kthreadd\n") => KTHREADD,
        _ => INIT,
    };
    Some(fs::metadata(link(proc, pid)).ok()?.ino())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// Processes and the files that stand for their mount namespaces, in place of /proc.
    struct Proc(TempDir);

    impl Proc {
        fn new() -> Self {
            Self(TempDir::new().expect("a directory for the test"))
        }

        /// Makes a process in a namespace of its own, and returns the namespace.
        fn process(&self, pid: u32, comm: &str) -> u64 {
            let ns = link(self.0.path(), pid);
            fs::create_dir_all(ns.parent().expect("it has a folder")).expect("a folder");
            fs::write(self.0.path().join(format!("{pid}/comm")), comm).expect("a name");
            fs::write(&ns, "").expect("a namespace");
            fs::metadata(&ns).expect("the namespace").ino()
        }

        fn first_of(&self, pids: &[u32], host: Option<u64>) -> Option<u64> {
            mount_namespace(self.0.path(), pids, host).map(|found| found.inode)
        }
    }

    #[test]
    fn the_first_namespace_that_is_not_the_hosts_counts() {
        let proc = Proc::new();
        let [first, second, third] = [10, 11, 12].map(|pid| proc.process(pid, "x\n"));

        assert_eq!(proc.first_of(&[10, 11, 12], None), Some(first));
        assert_eq!(proc.first_of(&[10, 11, 12], Some(first)), Some(second));
        assert_eq!(proc.first_of(&[12, 11], Some(first)), Some(third));
        assert_eq!(proc.first_of(&[10], Some(first)), None);
        assert_eq!(proc.first_of(&[], None), None);
    }

    #[test]
    fn processes_that_are_gone_are_passed_over() {
        let proc = Proc::new();
        let inode = proc.process(10, "x\n");

        assert_eq!(proc.first_of(&[99, 10], None), Some(inode));
        assert_eq!(proc.first_of(&[99], None), None);
    }

    #[test]
    fn kthreadd_is_on_the_host() {
        let proc = Proc::new();
        proc.process(1, "systemd\n");
        let inode = proc.process(2, "kthreadd\n");

        assert_eq!(host_mount_namespace(proc.0.path()), Some(inode));
    }

    #[test]
    fn without_kthreadd_the_first_process_is_on_the_host() {
        let proc = Proc::new();
        let inode = proc.process(1, "systemd\n");
        assert_eq!(host_mount_namespace(proc.0.path()), Some(inode));

        proc.process(2, "entrypoint\n");
        assert_eq!(host_mount_namespace(proc.0.path()), Some(inode));
    }

    #[test]
    fn the_host_is_not_known_where_nothing_may_be_read() {
        let proc = Proc::new();
        assert_eq!(host_mount_namespace(proc.0.path()), None);
    }
}
