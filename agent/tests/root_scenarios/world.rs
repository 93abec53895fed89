//! Network namespaces and cgroups that a test makes. Each is gone when its value is dropped.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libbpf_rs::libbpf_sys::bpf_map_create_opts;
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The kernel refuses to do what the scenario is about.
#[derive(Debug, thiserror::Error)]
#[error("this kernel has no {0}")]
pub struct Absent(pub &'static str);

/// How long anything may take that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Returns what `ready` yields, within the deadline.
pub fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        ensure!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A network namespace with loopback up, kept by a descriptor.
pub struct NetNs {
    file: File,
}

impl NetNs {
    pub fn new() -> Result<Self> {
        let file = thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            ip(&["link", "set", "lo", "up"])?;
            File::open("/proc/thread-self/ns/net").context("cannot open the network namespace")
        })
        .join()
        .map_err(|_| anyhow::anyhow!("the thread panicked"))??;
        Ok(Self { file })
    }

    /// Its inode, by which the tracer knows it.
    pub fn inode(&self) -> Result<u32> {
        Ok(u32::try_from(self.file.metadata()?.ino())?)
    }

    /// Where another process finds it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd())
    }

    /// Runs `f` on a thread inside.
    pub fn inside<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
                    f()
                })
                .join()
                .map_err(|_| anyhow::anyhow!("the thread panicked"))?
        })
    }

    /// Sets `/proc/sys/net/<name>` inside.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(name);
        self.inside(|| fs::write(&path, value).with_context(|| format!("cannot set {name}")))
    }

    /// Runs `ip` inside.
    pub fn ip(&self, args: &[&str]) -> Result<()> {
        self.inside(|| ip(args))
    }
}

/// Runs `f` on a thread that has no tracefs, nor have the threads it starts.
pub fn without_tracefs<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let hide = || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&Path>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        for path in ["/sys/kernel/tracing", "/sys/kernel/debug"] {
            mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, none)?;
        }
        f()
    };
    thread::scope(|scope| {
        scope
            .spawn(hide)
            .join()
            .map_err(|_| anyhow::anyhow!("the thread panicked"))?
    })
}

/// Two namespaces with a link between them: `near` has 192.0.2.1, `far` 192.0.2.2.
pub fn linked() -> Result<(NetNs, NetNs)> {
    let (near, far) = (NetNs::new()?, NetNs::new()?);
    near.ip(&[
        "link",
        "add",
        "name",
        "near",
        "type",
        "veth",
        "peer",
        "name",
        "far",
        "netns",
        &far.path(),
    ])?;
    for (netns, link, address) in [
        (&near, "near", "192.0.2.1/24"),
        (&far, "far", "192.0.2.2/24"),
    ] {
        netns.ip(&["addr", "add", address, "dev", link])?;
        netns.ip(&["link", "set", link, "up"])?;
    }
    Ok((near, far))
}

fn ip(args: &[&str]) -> Result<()> {
    let status = Command::new("ip")
        .args(args)
        .status()
        .context("cannot run ip")?;
    ensure!(status.success(), "ip {} failed", args.join(" "));
    Ok(())
}

/// A directory in the cgroup v2 hierarchy, wherever it is mounted.
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "tcptracer-test-{}-{}",
            process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        Self::at(cgroup2_mount()?.join(name))
    }

    pub fn child(&self, name: &str) -> Result<Self> {
        Self::at(self.path.join(name))
    }

    fn at(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path from the root of the hierarchy.
    pub fn path_in_hierarchy(&self) -> Result<String> {
        let path = self.path.strip_prefix(cgroup2_mount()?)?;
        Ok(format!("/{}", path.display()))
    }

    pub fn id(&self) -> Result<u64> {
        Ok(fs::metadata(&self.path)?.ino())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Busy until the last process, killed a moment ago, is gone.
        let _ = wait_for("removing the cgroup", || {
            Ok(fs::remove_dir(&self.path).is_ok().then_some(()))
        });
    }
}

/// A hash that is pinned where nobody else looks.
pub struct PinnedMap {
    map: MapHandle,
    path: PathBuf,
}

impl PinnedMap {
    /// As bcc's documentation makes it.
    pub fn holding(keys: &[u64]) -> Result<Self> {
        let map = Self::new(MapType::Hash, "filter", 8, 128)?;
        for &key in keys {
            map.insert(key)?;
        }
        Ok(map)
    }

    pub fn new(kind: MapType, name: &str, value_size: u32, entries: u32) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let options = bpf_map_create_opts {
            sz: size_of::<bpf_map_create_opts>() as _,
            ..Default::default()
        };
        let mut map = MapHandle::create(kind, Some(name), 8, value_size, entries, &options)
            .context("cannot make a map")?;
        let path = PathBuf::from(format!(
            "/sys/fs/bpf/tcptracer-test-{}-{}",
            process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        map.pin(&path)
            .with_context(|| format!("cannot pin {}", path.display()))?;
        Ok(Self { map, path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn insert(&self, key: u64) -> Result<()> {
        let value = vec![0; self.map.value_size() as usize];
        Ok(self.map.update(&key.to_ne_bytes(), &value, MapFlags::ANY)?)
    }

    pub fn remove(&self, key: u64) -> Result<()> {
        Ok(self.map.delete(&key.to_ne_bytes())?)
    }
}

impl Drop for PinnedMap {
    fn drop(&mut self) {
        let _ = self.map.unpin(&self.path);
    }
}

fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    for line in mounts.lines() {
        if let [_, path, "cgroup2", ..] = line.split(' ').collect::<Vec<_>>()[..] {
            return Ok(path.into());
        }
    }
    bail!("the cgroup v2 hierarchy is not mounted")
}
