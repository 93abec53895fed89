//! Namespaces and cgroups that last as long as the value that stands for them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{panic, thread};

use nix::sched::{CloneFlags, unshare};
use procfs::net::TcpState;
use procfs::process::Process;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, gettid, move_into_link_name_space};

use crate::{DEADLINE, wait_until};

/// Runs it in a thread of its own, whose namespaces may be changed; processes it starts have them.
pub fn aside<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panic) => panic::resume_unwind(panic),
    })
}

/// What the kernel tells of the calling thread, whose namespaces may be its own.
pub fn this_thread() -> Process {
    let tid = gettid().as_raw_nonzero().get();
    Process::new(tid).expect("this thread runs")
}

/// A network namespace.
pub struct Netns {
    file: File,
    pub inode: u64,
}

impl Netns {
    /// One with nothing but a loopback device, which is up.
    pub fn new() -> Self {
        Self::held(aside(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace can be made");
            ip(&["link", "set", "lo", "up"]);
            // If the peer's ACK comes as `close` returns, the kernel keeps the socket in FIN_WAIT2 for so many seconds, by
            // default a minute, unless the peer closes as well.
            write_sysctl("ipv4/tcp_fin_timeout", "1").expect("it can be shortened");
            ack_at_once();
            let file = this_thread().open_relative("ns/net");
            file.expect("the namespace has a file")
        }))
    }

    /// That of a process.
    pub fn of(pid: u32) -> Self {
        let process = Process::new(pid.cast_signed());
        let file = process.and_then(|process| process.open_relative("ns/net"));
        Self::held(file.expect("the process runs"))
    }

    fn held(file: File) -> Self {
        let inode = file.metadata().expect("the namespace has an inode").ino();
        Self { file, inode }
    }

    /// Where other processes find it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd())
    }

    /// Runs it inside.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        aside(|| {
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("the namespace can be entered");
            f()
        })
    }

    /// Sets `/proc/sys/net/<name>` inside.
    #[track_caller]
    pub fn sysctl(&self, name: &str, value: &str) {
        let written = self.enter(|| write_sysctl(name, value));
        written.unwrap_or_else(|e| panic!("{name} cannot be set: {e}"));
    }

    /// The same, unless this kernel does not know it.
    #[track_caller]
    pub fn sysctl_if_known(&self, name: &str, value: &str) {
        if self.enter(|| sysctl_path(name).exists()) {
            self.sysctl(name, value);
        }
    }

    /// Runs `ip` inside.
    pub fn ip(&self, args: &[&str]) {
        self.enter(|| ip(args));
    }

    /// Gives the loopback device another IPv6 address. Nobody looks for duplicates first, until when it could not be used.
    pub fn add_address(&self, address: &str) {
        self.ip(&["addr", "add", address, "dev", "lo", "nodad"]);
    }

    /// Waits until no connection in it is open: a busy kernel may take a while from the last `close`.
    #[track_caller]
    pub fn wait_until_closed(&self) {
        /// In TIME_WAIT there is no socket any more.
        const OVER: [TcpState; 2] = [TcpState::TimeWait, TcpState::Listen];
        let are_closed = || {
            let this = this_thread();
            [this.tcp(), this.tcp6()].into_iter().all(|table| {
                let table = table.expect("the sockets are listed");
                table.iter().all(|socket| OVER.contains(&socket.state))
            })
        };
        self.enter(|| wait_until("the connections are closed", are_closed));
    }

    /// Joins two by a wire that ends with either. The addresses have a prefix length.
    pub fn wire(&self, address: &str, other: &Self, its_address: &str) {
        self.ip(&[
            "link", "add", "eth0", "type", "veth", "peer", "name", "eth1",
        ]);
        self.ip(&["link", "set", "eth1", "netns", &other.path()]);
        for (netns, device, address) in [(self, "eth0", address), (other, "eth1", its_address)] {
            netns.ip(&["addr", "add", address, "dev", device]);
            netns.ip(&["link", "set", device, "up"]);
        }
    }
}

/// Sets it for the network namespace of the calling thread.
fn write_sysctl(name: &str, value: &str) -> io::Result<()> {
    fs::write(sysctl_path(name), value)
}

/// procfs knows no sysctl of networks.
fn sysctl_path(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}

fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().expect("ip runs");
    assert!(status.success(), "ip {args:?}: {status}");
}

/// Has every segment over the loopback device acknowledged in the context of who sends it. Else the ACK of a FIN waits for
/// a timer, and so does what follows from it: the ends of many connections at a time run in one softirq, on top of any
/// task. Some kernels of hosted machines run no program while that task is one of their own, and count no miss.
fn ack_at_once() {
    const ROUTES: &str = "\
        route replace local 127.0.0.0/8 dev lo table local scope host src 127.0.0.1 quickack 1\n\
        route replace local 127.0.0.1 dev lo table local scope host src 127.0.0.1 quickack 1\n\
        route add local ::1 dev lo table local quickack 1\n\
        route del local ::1 dev lo table local metric 0\n";
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ip runs");
    let routes = ip
        .stdin
        .take()
        .expect("a pipe")
        .write_all(ROUTES.as_bytes());
    let ended = ip.wait_with_output().expect("ip ends");
    let complaint = String::from_utf8_lossy(&ended.stderr);
    // That of busybox, which guests of another processor have, cannot.
    let is_possible = !complaint.contains("BusyBox");
    assert!(ended.status.success() || !is_possible, "ip: {complaint}");
    assert!(routes.is_ok() || !is_possible, "ip reads the routes");
}

/// Runs it in a mount namespace of its own, from which nothing spreads.
pub fn own_mounts<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    aside(|| {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace can be made");
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .expect("mounts can be made private");
        f()
    })
}

/// Where the calling thread sees file systems of this type.
pub fn mount_points(kind: &str) -> Vec<PathBuf> {
    let mounts = this_thread().mountinfo().expect("the mounts can be read");
    let of_kind = mounts.into_iter().filter(|mount| mount.fs_type == kind);
    of_kind.map(|mount| mount.mount_point).collect()
}

/// Hides what is there behind an empty file system. Only with mounts of one's own.
pub fn cover(path: &Path) {
    mount("none", path, "tmpfs", MountFlags::empty(), None)
        .unwrap_or_else(|e| panic!("{} cannot be covered: {e}", path.display()));
}

/// Where cgroup v2 is mounted.
pub fn v2_mount() -> PathBuf {
    let mounts = mount_points("cgroup2");
    mounts.into_iter().next().expect("cgroup v2 is mounted")
}

/// A cgroup of the v2 hierarchy. What was moved into it has to end before it does.
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Right below the root.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "tcptracer-test-{}-{}",
            process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        Self::at(v2_mount().join(name))
    }

    /// One level down.
    pub fn child(&self, name: impl AsRef<OsStr>) -> Self {
        Self::at(self.path.join(name.as_ref()))
    }

    fn at(path: PathBuf) -> Self {
        fs::create_dir(&path).expect("a cgroup can be made");
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path from the root of the hierarchy.
    pub fn path_in_hierarchy(&self) -> String {
        let path = self.path.strip_prefix(v2_mount());
        format!("/{}", path.expect("it is below the root").display())
    }

    pub fn id(&self) -> u64 {
        fs::metadata(&self.path).expect("the cgroup is there").ino()
    }

    pub fn add(&self, pid: u32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
            .expect("a process can be moved into the cgroup");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if thread::panicking() {
            return sweep(&self.path);
        }
        // A process that was killed stays in it for a moment.
        wait_until("the cgroup empties", || match fs::remove_dir(&self.path) {
            Err(e) => e.kind() != ErrorKind::ResourceBusy,
            Ok(()) => true,
        });
    }
}

/// Kills what is in a cgroup and below, and removes them: after a test that failed, in which nobody else would. It may
/// run while that unwinds, so it gives up in silence.
pub fn sweep(cgroup: &Path) {
    let start = Instant::now();
    while cgroup.exists() && start.elapsed() < DEADLINE {
        kill_and_remove(cgroup);
        thread::sleep(Duration::from_millis(5));
    }
}

fn kill_and_remove(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_and_remove(&entry.path());
        }
    }
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|pid| pid.parse().ok()) {
        let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
    }
    let _ = fs::remove_dir(cgroup);
}
