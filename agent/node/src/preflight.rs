//! `tcptracer-agent check`: what the agent needs of a node, beside what every tracer needs.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use caps::{CapSet, Capability};
use rustix::fs::statfs;
use tcptracer::bpf::{Facts, PinDir};
use tcptracer::check::{self, Lack, Requirement};

use crate::cgroup::{self, Hierarchy, Mode};

/// `PROC_SUPER_MAGIC`.
const PROC: u64 = 0x9fa0;

/// What is lost where no mount namespace can be told.
const NO_MOUNT_NAMESPACES: &str = "the mount namespaces of containers are not known: mntnsmap stays empty, and \
    processes that left the cgroup of their container are not counted to it";

/// What is lost in a pid namespace that is not the host's.
pub const NO_OLDER_SOCKETS: &str = "connections and listeners that are there before the start are not known: the kernel \
    lists the sockets of the agent's own pid namespace, which is not the host's";

/// Options of `check`.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct PreflightArgs {
    #[command(flatten)]
    check: check::Args,
    #[command(flatten)]
    places: Places,
}

/// Where the agent finds the host.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Places {
    /// Where to pin the filter maps
    #[arg(
        long,
        env = "TCPTRACER_PIN_DIR",
        value_name = "DIR",
        default_value = "/sys/fs/bpf/tcptracer"
    )]
    pub pin_dir: PathBuf,

    /// Where the host's cgroups are mounted
    #[arg(
        long,
        env = "TCPTRACER_CGROUPFS",
        value_name = "DIR",
        default_value = "/sys/fs/cgroup"
    )]
    pub cgroupfs: PathBuf,

    /// Where the host's processes are seen
    #[arg(
        long,
        env = "TCPTRACER_PROC",
        value_name = "DIR",
        default_value = "/proc"
    )]
    pub proc: PathBuf,
}

/// Looks, tries, and writes the report to stdout. The exit code is the verdict's.
pub fn run(args: &PreflightArgs) -> Result<ExitCode> {
    let facts = Facts::gather(true);
    let mut requirements = check::of_every_tracer(&facts);
    requirements.extend(of_the_agent(&args.places));
    check::write(&args.check, &facts, requirements)
}

fn of_the_agent(places: &Places) -> [Requirement; 5] {
    let cgroups = Cgroups::look(&places.cgroupfs);
    // Where cgroups say nothing to tracing programs there is nothing else to go by.
    let by_mounts = match &cgroups {
        Ok(cgroups) if cgroups.hierarchy.mode() == Mode::V1 => Lack::Prevents,
        _ => Lack::Degrades(NO_MOUNT_NAMESPACES),
    };
    let pins = PinDir::attempt(&places.pin_dir).map(|()| places.pin_dir.display().to_string());
    let ptrace = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_PTRACE);
    [
        Requirement::new(
            "CAP_SYS_PTRACE",
            match ptrace {
                Ok(true) => Ok(String::new()),
                _ => Err("add it: without, the namespaces of others are hidden".into()),
            },
            by_mounts,
        ),
        Requirement::new("bpffs", told(pins), Lack::Prevents),
        Requirement::new(
            "processes",
            told(processes(&places.proc, cgroups.as_ref().ok())),
            by_mounts,
        ),
        Requirement::new(
            "pid namespace",
            match cgroup::shares_pids_with_host(&places.proc) {
                true => Ok("the host's".into()),
                false => Err("it is not the host's: run the agent with hostPID".into()),
            },
            Lack::Degrades(NO_OLDER_SOCKETS),
        ),
        Requirement::new(
            "cgroups",
            told(cgroups.map(|c| c.to_string())),
            Lack::Prevents,
        ),
    ]
}

fn told(found: Result<String>) -> Result<String, String> {
    found.map_err(|e| format!("{e:#}"))
}

/// The hierarchy that tells of containers, and those in it.
struct Cgroups {
    hierarchy: Hierarchy,
    root: PathBuf,
    /// Paths of containers and of the sandboxes of pods, by their ids.
    containers: BTreeMap<String, String>,
}

impl Cgroups {
    fn look(root: &Path) -> Result<Self> {
        let hierarchy = Hierarchy::detect(root)?;
        hierarchy.number()?;
        let containers = hierarchy
            .scan()?
            .iter()
            .filter_map(|cgroup| {
                let found = cgroup::parse(&cgroup.path)?;
                Some((found.container_id.to_owned(), found.path.to_owned()))
            })
            .collect();
        Ok(Self {
            hierarchy,
            root: root.into(),
            containers,
        })
    }

    /// As the agent does it. True as well if there is no process in any container.
    fn tell_a_mount_namespace(&self, proc: &Path) -> bool {
        let host = cgroup::host_mount_namespace(proc);
        let searched = match cgroup::shows_our_pids(proc) {
            true => None,
            false => {
                let ids = self.containers.keys().map(String::as_str).collect();
                Some(cgroup::processes_of(proc, &ids))
            }
        };
        let mut has_processes = false;
        let mut is_told = |(id, path): (&String, &String)| {
            let pids = match &searched {
                None => self.hierarchy.processes(path),
                Some(found) => found.get(id.as_str()).cloned().unwrap_or_default(),
            };
            has_processes |= !pids.is_empty() || self.hierarchy.hides_processes(path);
            cgroup::mount_namespace(proc, path, &pids, host).is_some()
        };
        self.containers.iter().any(&mut is_told) || !has_processes
    }
}

impl Display for Cgroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.hierarchy.mode() {
            Mode::V2 => "v2",
            Mode::Hybrid => "v2 beside v1",
            Mode::V1 => "v1, where only mount namespaces tell of containers,",
        };
        write!(f, "{mode} at {}", self.root.display())?;
        if !self.hierarchy.is_whole() {
            f.write_str(", of which only a part is seen")?;
        }
        let driver = match self.containers.values().next() {
            None => return f.write_str(", no containers of pods yet"),
            Some(path) if path.contains(".slice/") => "systemd",
            Some(_) => "cgroupfs",
        };
        let count = self.containers.len();
        write!(f, ", containers of pods: {count}, driver {driver}")
    }
}

/// Whether processes can be seen and, if there are containers with some, the mount namespace of one.
fn processes(proc: &Path, cgroups: Option<&Cgroups>) -> Result<String> {
    let shown = proc.display();
    ensure!(
        statfs(proc).is_ok_and(|s| s.f_type as u64 == PROC),
        "none are seen at {shown}: mount the host's /proc there, or name the place with --proc"
    );
    if let Some(cgroups) = cgroups {
        ensure!(
            cgroups.tell_a_mount_namespace(proc),
            "the mount namespace of no container can be told at {shown}: mount the host's /proc there, or name the \
             place with --proc, and add CAP_SYS_PTRACE"
        );
    }
    Ok(shown.to_string())
}
