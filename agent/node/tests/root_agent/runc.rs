//! Containers made by runc, as the runtime of a node makes them: in cgroups of the kubelet's shape, with mounts
//! and processes of their own. In each runs an actor, which is this binary.
//!
//! What is made for a container, its cgroups in every hierarchy as well, goes with the value that stands for it.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::{getpid, set_child_subreaper};
use serde_json::{Value, json};
use tcptracer_testing::{ACTOR, Actor, Netns, channel, wait_until};
use tempfile::TempDir;

use crate::node::{Node, remove_cgroup};

/// Where a container has this binary.
const PROGRAM: &str = "/actor";

/// Where the libraries are that this binary needs; not every architecture has all of these.
const LIBRARIES: [&str; 3] = ["/usr", "/lib", "/lib64"];

/// The network namespace of a container.
pub enum Network<'a> {
    /// One that is made for it, with a loopback device.
    Own,
    /// That of another container of its pod.
    Of(&'a Container),
    /// The host's.
    Host,
}

/// A container that has been made and runs nothing yet.
pub struct Created {
    control: UnixStream,
    pid: u32,
    uid: String,
    place: Place,
}

/// A container that runs. What it runs ends before it is removed.
pub struct Container {
    pub actor: Actor,
    pub uid: String,
    pub id: String,
    place: Place,
}

/// What is there for a container until it is removed.
struct Place {
    id: String,
    pod_cgroup: String,
    /// Its own cgroup, in the hierarchy by which the kernel knows it.
    cgroup: PathBuf,
    /// Its root file system and runc's notes.
    folder: TempDir,
}

/// Makes a container of a pod that the agent may know or not.
pub fn create(node: &Node, uid: &str, id: &str, network: &Network) -> Created {
    // As a runtime's shim: what runc starts is left to it.
    set_child_subreaper(Some(getpid())).expect("orphans can be adopted");
    let pod_cgroup = node.pod_cgroup(uid);
    let cgroup = format!("{pod_cgroup}/{id}");
    let folder = TempDir::new().expect("a folder for the container");
    let config = config(&cgroup, network).to_string();
    fs::create_dir(folder.path().join("rootfs")).expect("a root file system can be made");
    fs::write(folder.path().join("config.json"), config).expect("the container can be described");
    let place = Place {
        id: id.into(),
        pod_cgroup,
        cgroup: node.mount().join(&cgroup[1..]),
        folder,
    };
    let control = place.run("create", &[id]);
    Created {
        pid: place.pid(),
        control,
        uid: uid.into(),
        place,
    }
}

/// The container as its runtime describes it to runc.
fn config(cgroup: &str, network: &Network) -> Value {
    let mut namespaces = vec![json!({ "type": "pid" }), json!({ "type": "mount" })];
    namespaces.extend(match network {
        Network::Own => Some(json!({ "type": "network" })),
        Network::Of(other) => {
            let path = format!("/proc/{}/ns/net", other.actor.pid());
            Some(json!({ "type": "network", "path": path }))
        }
        Network::Host => None,
    });
    let program = env::current_exe().expect("this binary has a path");
    let libraries = LIBRARIES.map(PathBuf::from);
    let mut mounts = vec![json!({ "destination": "/proc", "type": "proc", "source": "proc" })];
    mounts.extend(
        libraries
            .iter()
            .filter(|folder| folder.exists())
            .map(|folder| (folder.as_path(), folder))
            .chain([(Path::new(PROGRAM), &program)])
            .map(|(destination, source)| {
                json!({
                    "destination": destination, "source": source, "type": "bind",
                    "options": ["rbind", "ro"],
                })
            }),
    );
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": [PROGRAM, ACTOR], "cwd": "/", "user": { "uid": 0, "gid": 0 },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": mounts,
        "linux": { "cgroupsPath": cgroup, "namespaces": namespaces },
    })
}

impl Created {
    /// Its network namespace, to put devices in.
    pub fn netns(&self) -> Netns {
        Netns::of(self.pid)
    }

    /// Has it run an actor of this name.
    pub fn start(self, comm: &str) -> Container {
        let start = self.place.runc("start").arg(&self.place.id).spawn();
        finish(&mut start.expect("runc can be run"), "start");
        Container {
            actor: Actor::adopted(self.pid, self.control, comm),
            uid: self.uid,
            id: self.place.id.clone(),
            place: self.place,
        }
    }
}

impl Container {
    /// The id of its cgroup.
    pub fn cgroup_id(&self) -> u64 {
        let cgroup = fs::metadata(&self.place.cgroup);
        cgroup.expect("the cgroup is there").ino()
    }

    /// Runs one more actor in it, as `kubectl exec` does.
    pub fn exec(&self, comm: &str) -> Actor {
        let exec = ["--detach", &self.id, PROGRAM, ACTOR];
        let control = self.place.run("exec", &exec);
        Actor::adopted(self.place.pid(), control, comm)
    }

    /// Moves its process into a cgroup below its own.
    pub fn nest(&self) {
        let nested = self.place.cgroup.join("nested");
        fs::create_dir(&nested).expect("a cgroup can be made");
        fs::write(nested.join("cgroup.procs"), self.actor.pid().to_string())
            .expect("a process can be moved");
    }
}

impl Place {
    /// Finds the container in the current folder.
    fn runc(&self, command: &str) -> Command {
        let mut runc = Command::new("runc");
        runc.current_dir(&self.folder).stdin(Stdio::null());
        runc.args(["--root", "state", command]);
        runc
    }

    /// Has runc start a process of the container, an actor, and returns the channel to that. Its pid is noted.
    #[track_caller]
    fn run(&self, command: &str, arguments: &[&str]) -> UnixStream {
        let (control, stdin) = channel().expect("a channel");
        let runc = self
            .runc(command)
            .args(["--pid-file", "pid"])
            .args(arguments)
            .stdin(stdin)
            .stdout(Stdio::null())
            .spawn();
        let mut runc = runc.unwrap_or_else(|e| {
            panic!("runc cannot be run: {e}: scripts/setup.sh test installs it")
        });
        finish(&mut runc, command);
        control
    }

    /// The process that was started last.
    fn pid(&self) -> u32 {
        let pid = fs::read_to_string(self.folder.path().join("pid")).expect("runc notes the pid");
        pid.parse().expect("a pid")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let deleted = self.runc("delete").args(["--force", &self.id]).status();
        remove_cgroup(&self.pod_cgroup);
        // If the test has failed, what it could not make cannot be deleted either.
        let deleted = deleted.is_ok_and(|status| status.success());
        assert!(
            deleted || thread::panicking(),
            "runc cannot delete {}",
            self.id
        );
    }
}

/// Waits until runc ends, which has to go well; what is wrong it says on stderr.
#[track_caller]
fn finish(runc: &mut Child, what: &str) {
    let mut status = None;
    wait_until("runc ends", || {
        status = runc.try_wait().expect("runc can be waited for");
        status.is_some()
    });
    assert!(
        status.is_some_and(|s| s.success()),
        "runc {what}: {status:?}"
    );
}
