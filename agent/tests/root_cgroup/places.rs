//! Cgroups and processes that last as long as the value that stands for them.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{io, panic, thread};

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};
use tcptracer::cgroup::Cgroup;

/// The first argument of a process to be put into a cgroup.
pub const ACTOR: &str = "actor";

/// Nothing that is waited for takes this long unless it is broken.
const DEADLINE: Duration = Duration::from_secs(10);

/// Where cgroup v2 is mounted.
pub fn v2_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts can be read");
    let found = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let path = words.next()?;
        (words.next()? == "cgroup2").then(|| path.into())
    });
    found.expect("cgroup v2 is mounted")
}

/// Runs it in a mount namespace of its own, from which nothing spreads.
pub fn own_mounts(f: impl FnOnce() + Send) {
    let result = thread::scope(|scope| {
        let aside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace can be made");
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).expect("mounts can be made private");
            f();
        });
        aside.join()
    });
    if let Err(panic) = result {
        panic::resume_unwind(panic);
    }
}

/// Real cgroups below one of the test's own. Processes in them have to end before they do.
pub struct Tree {
    mount: PathBuf,
    /// The path of the test's own.
    pub top: String,
    /// Those above before those below.
    made: Vec<PathBuf>,
}

impl Tree {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut tree = Self {
            mount: v2_mount(),
            top: format!(
                "/tcptracer-test-{}-{}",
                process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            ),
            made: Vec::new(),
        };
        tree.cgroup("");
        tree
    }

    /// Makes the cgroup at this path below the test's own, and those above it.
    pub fn cgroup(&mut self, path: &str) -> Cgroup {
        let path = format!("{}{path}", self.top);
        let mut folder = self.mount.clone();
        for name in path.split('/').skip(1) {
            folder.push(name);
            match fs::create_dir(&folder) {
                Ok(()) => self.made.push(folder.clone()),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => panic!("{} cannot be made: {e}", folder.display()),
            }
        }
        let id = fs::metadata(&folder).expect("the cgroup is there").ino();
        Cgroup { id, path }
    }

    /// Removes a cgroup, which has to be empty.
    pub fn remove(&mut self, cgroup: &Cgroup) {
        let folder = self.folder(cgroup);
        remove(&folder).expect("the cgroup can be removed");
        self.made.retain(|made| *made != folder);
    }

    pub fn add(&self, pid: u32, cgroup: &Cgroup) {
        fs::write(self.folder(cgroup).join("cgroup.procs"), pid.to_string())
            .expect("a process can be moved into the cgroup");
    }

    fn folder(&self, cgroup: &Cgroup) -> PathBuf {
        self.mount.join(cgroup.path.trim_start_matches('/'))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let failed = self.made.iter().rev().find_map(|made| remove(made).err());
        if let Some(e) = failed
            && !thread::panicking()
        {
            panic!("the cgroups cannot be removed: {e}");
        }
    }
}

/// A process that ended stays in its cgroup for a moment.
fn remove(folder: &Path) -> io::Result<()> {
    let start = Instant::now();
    loop {
        match fs::remove_dir(folder) {
            Err(e) if e.kind() == ErrorKind::ResourceBusy && start.elapsed() < DEADLINE => {
                thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}

/// This binary again, as a process in the namespaces of the test. Killed on drop.
pub struct Actor {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Actor {
    pub fn new() -> Self {
        let mut child = Command::new("/proc/self/exe")
            .arg(ACTOR)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("an actor starts");
        let to = child.stdin.take().expect("the actor has a stdin");
        let from = BufReader::new(child.stdout.take().expect("the actor has a stdout"));
        Self { child, to, from }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it leave for a mount namespace of its own, and returns the inode of that.
    pub fn leave_mounts(&mut self) -> u64 {
        writeln!(self.to, "leave").expect("the actor listens");
        let mut answer = String::new();
        self.from
            .read_line(&mut answer)
            .expect("the actor can be heard");
        assert_eq!(answer, "left\n");
        self.mount_namespace()
    }

    /// The inode of its mount namespace.
    pub fn mount_namespace(&self) -> u64 {
        fs::metadata(format!("/proc/{}/ns/mnt", self.pid()))
            .expect("the actor runs")
            .ino()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The actor's side: leaves its mount namespace for each line, and ends with its stdin.
pub fn act() -> ExitCode {
    for _ in io::stdin().lock().lines() {
        if let Err(e) = unshare(CloneFlags::CLONE_NEWNS) {
            eprintln!("actor: no mount namespace of its own: {e}");
            return ExitCode::FAILURE;
        }
        println!("left");
    }
    ExitCode::SUCCESS
}
