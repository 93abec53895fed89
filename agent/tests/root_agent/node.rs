//! A node: an agent, a file of pods, and containers that are cgroups with a process.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use libbpf_rs::{MapCore, MapHandle};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::Client;
use crate::support::places::sweep;
use crate::support::{Actor, DEADLINE, Netns, mount_points, wait_until};

/// Room for a few, unless a test says otherwise.
const SMALL: &[(&str, &str)] = &[("--max-connections", "8192"), ("--max-containers", "64")];

/// A container: the cgroup and the process in it. What is in it ends before it does.
pub struct Container {
    pub actor: Actor,
    pub id: String,
    pub uid: String,
    cgroup: PathBuf,
    /// Its own cgroup, and those made below it.
    folders: Vec<PathBuf>,
}

impl Container {
    /// The id of its cgroup.
    pub fn cgroup_id(&self) -> u64 {
        fs::metadata(&self.cgroup)
            .expect("the cgroup is there")
            .ino()
    }

    /// Moves its process into a cgroup below its own.
    pub fn nest(&mut self) {
        self.nest_as(OsStr::new("nested"));
    }

    /// The same, of this name.
    pub fn nest_as(&mut self, name: &OsStr) {
        let nested = self.cgroup.join(name);
        fs::create_dir(&nested).expect("a cgroup can be made");
        fs::write(nested.join("cgroup.procs"), self.actor.pid().to_string())
            .expect("a process can be moved");
        self.folders.push(nested);
    }

    /// Moves its process out of it, into the root of all cgroups.
    pub fn leave(&self) {
        let root = mount_points("cgroup2").remove(0).join("cgroup.procs");
        fs::write(root, self.actor.pid().to_string()).expect("a process can be moved");
    }

    /// Ends its process and removes its cgroup.
    pub fn remove(mut self) {
        self.actor.exit();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // It may wait for what does not come.
        self.actor.kill();
        // What is left of a test that failed is swept with the node's place.
        if !thread::panicking() {
            for folder in self.folders.iter().rev() {
                wait_until("the cgroup is empty", || fs::remove_dir(folder).is_ok());
            }
        }
    }
}

/// A running agent.
pub struct Agent {
    pub child: Child,
    pub log: Receiver<String>,
    pub http: String,
}

impl Agent {
    /// The exit code, once it has ended.
    pub fn end(&mut self) -> Option<i32> {
        let mut code = None;
        wait_until("the agent ends", || {
            code = self.child.try_wait().expect("the agent can be waited for");
            code.is_some()
        });
        code.and_then(|c| c.code())
    }

    /// Whether it has a mount namespace open, as long as which that cannot be another.
    pub fn holds_mounts(&self, inode: u64) -> bool {
        let link = format!("mnt:[{inode}]");
        self.files().any(|file| file.as_os_str() == link.as_str())
    }

    /// What it has open.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        let files = fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        let links = files.expect("the agent runs").flatten();
        links.filter_map(|file| fs::read_link(file.path()).ok())
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the agent can be signalled");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a node has its cgroups and its pins. They go with it, with all that a test which failed has left there.
struct Place {
    /// Of the cgroup that is the root of the node's, in every hierarchy.
    name: String,
    pins: PathBuf,
}

impl Place {
    fn new(mount: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tcptracer-test-{}-{number}", process::id());
        let place = Self {
            pins: Path::new("/sys/fs/bpf").join(&name),
            name,
        };
        for below in ["", "kubepods", "kubepods/burstable"] {
            let cgroup = mount.join(&place.name).join(below);
            fs::create_dir(cgroup).expect("a cgroup can be made");
        }
        place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let cgroups = cgroups_at(&format!("/{}", self.name));
        if thread::panicking() {
            cgroups.iter().for_each(|cgroup| sweep(cgroup));
        } else {
            for below in ["/kubepods/burstable", "/kubepods", ""] {
                remove_cgroup(&format!("/{}{below}", self.name));
            }
        }
        let _ = fs::remove_dir_all(&self.pins);
        let is_left = cgroups.iter().any(|cgroup| cgroup.exists());
        assert!(
            thread::panicking() || !is_left,
            "some of {cgroups:?} is left"
        );
    }
}

pub struct Node {
    // Before the place: what is in it has to end.
    pub agent: Agent,
    pub netns: Netns,
    pods: Vec<Value>,
    launcher: Vec<String>,
    pub options: Vec<String>,
    mount: PathBuf,
    pub folder: TempDir,
    pub pins: PathBuf,
    place: Place,
}

impl Node {
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// With more options for the agent.
    pub fn with(options: &[&str]) -> Self {
        Self::launched(&[], |_| options.iter().map(ToString::to_string).collect())
    }

    /// With an agent that is run by another command, and options that depend on where the node's cgroups are.
    pub fn launched(launcher: &[&str], options: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let mount = mount_points("cgroup2").remove(0);
        let place = Place::new(&mount);
        let folder = TempDir::new().expect("a folder for the test");
        let pins = place.pins.clone();
        let launcher: Vec<String> = launcher.iter().map(ToString::to_string).collect();
        let options = options(&mount.join(&place.name));
        write_pods(folder.path(), &[]);
        let agent = start(&launcher, folder.path(), &pins, &options);
        Self {
            agent,
            netns: Netns::new(),
            pods: Vec::new(),
            launcher,
            options,
            mount,
            folder,
            pins,
            place,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket())
    }

    /// Makes a container, and says so to the agent with a pod of one container.
    pub fn pod(&mut self, namespace: &str, name: &str, labels: Value) -> Container {
        let (uid, id) = (fresh_uid(), fresh_id());
        self.add_pod(namespace, name, labels, &uid, &id);
        self.container(uid, id, name)
    }

    /// Tells the agent of a pod.
    pub fn add_pod(&mut self, namespace: &str, name: &str, labels: Value, uid: &str, id: &str) {
        let mut pod = pod(namespace, name, uid, &[("main", id)]);
        pod["metadata"]["labels"] = labels;
        self.add(pod);
    }

    /// Tells the agent of a pod, as the API has it.
    pub fn add(&mut self, pod: Value) {
        self.pods.push(pod);
        self.write();
    }

    /// Where a pod's cgroups are in each hierarchy.
    pub fn pod_cgroup(&self, uid: &str) -> String {
        format!("/{}/kubepods/burstable/pod{uid}", self.place.name)
    }

    /// Where the hierarchy is by which the kernel knows cgroups.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// A container of a pod that the agent may know or not.
    pub fn container(&self, uid: String, id: String, comm: &str) -> Container {
        self.container_of(uid, id, Actor::inside(&self.netns, comm))
    }

    /// The same, of a process that is there.
    pub fn container_of(&self, uid: String, id: String, actor: Actor) -> Container {
        let pod = self.mount.join(&self.pod_cgroup(&uid)[1..]);
        let cgroup = pod.join(&id);
        fs::create_dir(&pod).expect("a cgroup can be made");
        fs::create_dir(&cgroup).expect("a cgroup can be made");
        fs::write(cgroup.join("cgroup.procs"), actor.pid().to_string())
            .expect("a process can be moved");
        Container {
            actor,
            id,
            uid,
            folders: vec![pod, cgroup.clone()],
            cgroup,
        }
    }

    pub fn relabel(&mut self, name: &str, labels: Value) {
        for pod in &mut self.pods {
            if pod["metadata"]["name"] == name {
                pod["metadata"]["labels"] = labels.clone();
            }
        }
        self.write();
    }

    pub fn delete_pod(&mut self, name: &str) {
        self.pods.retain(|pod| pod["metadata"]["name"] != name);
        self.write();
    }

    pub fn delete_pods(&mut self) {
        self.pods.clear();
        self.write();
    }

    pub fn write(&self) {
        write_pods(self.folder.path(), &self.pods);
    }

    /// Something else in place of the list of pods.
    pub fn write_text(&self, text: &str) {
        replace_pods(self.folder.path(), text);
    }

    /// Starts the agent anew.
    pub fn restart(&mut self) {
        self.agent = start(
            &self.launcher,
            self.folder.path(),
            &self.pins,
            &self.options,
        );
    }

    /// The keys of a pinned map.
    pub fn keys(&self, map: &str) -> HashSet<u64> {
        let map = MapHandle::from_pinned_path(self.pins.join(map)).expect("the map is pinned");
        map.keys()
            .filter_map(|key| Some(u64::from_ne_bytes(key.try_into().ok()?)))
            .collect()
    }

    /// What the agent answers over HTTP: the whole response.
    pub fn get(&self, path: &str) -> String {
        get(&self.agent.http, path)
    }

    /// The metrics have each of these lines.
    #[track_caller]
    pub fn assert_metrics(&self, lines: &[&str]) {
        let metrics = self.get("/metrics");
        for line in lines {
            assert!(metrics.lines().any(|l| l == *line), "{line} in\n{metrics}");
        }
    }
}

/// What the agent that listens there answers: the whole response.
pub fn get(http: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(http).expect("the agent listens");
    stream
        .set_read_timeout(Some(DEADLINE))
        .expect("a deadline can be set");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .expect("the agent can be asked");
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .expect("the agent answers");
    answer
}

/// A pod of containers with these names and ids, as the API has it.
pub fn pod(namespace: &str, name: &str, uid: &str, containers: &[(&str, &str)]) -> Value {
    let specs: Vec<Value> = containers
        .iter()
        .map(|(name, _)| json!({ "name": name, "image": "registry/image:1" }))
        .collect();
    let statuses: Vec<Value> = containers
        .iter()
        .map(|(name, id)| {
            json!({
                "name": name, "image": "registry/image:1", "imageID": "", "ready": true,
                "restartCount": 0, "containerID": format!("containerd://{id}"),
            })
        })
        .collect();
    json!({
        "metadata": {
            "name": name, "namespace": namespace, "uid": uid,
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "owner", "uid": "u",
                "controller": true,
            }],
        },
        "spec": { "containers": specs },
        "status": { "containerStatuses": statuses },
    })
}

/// Where a cgroup is, or could be: a runtime makes it in every hierarchy.
fn cgroups_at(path: &str) -> Vec<PathBuf> {
    let mut mounts = mount_points("cgroup2");
    mounts.extend(mount_points("cgroup"));
    mounts.iter().map(|mount| mount.join(&path[1..])).collect()
}

/// Removes a cgroup if nothing is in it.
pub fn remove_cgroup(path: &str) {
    for cgroup in cgroups_at(path) {
        let _ = fs::remove_dir(cgroup);
    }
}

/// As a person would replace it: whole.
fn write_pods(folder: &Path, pods: &[Value]) {
    let list = json!({ "kind": "PodList", "apiVersion": "v1", "items": pods });
    replace_pods(folder, &list.to_string());
}

/// At once: nobody reads half of it.
fn replace_pods(folder: &Path, text: &str) {
    let new = folder.join("pods.new");
    fs::write(&new, text).expect("the pods can be written");
    fs::rename(new, folder.join("pods.json")).expect("the pods can be replaced");
}

pub fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tcptracer-agent"))
}

/// Returns once it traces.
fn start(launcher: &[String], folder: &Path, pins: &Path, options: &[String]) -> Agent {
    let mut command = match launcher {
        [] => command(),
        [program, arguments @ ..] => {
            let mut launched = Command::new(program);
            launched.args(arguments).arg(command().get_program());
            launched
        }
    };
    let pods = format!("file:{}", folder.join("pods.json").display());
    let defaults = SMALL.iter().copied().chain([("--pods", &*pods)]);
    let mut child = command
        .args(["--node-name", "node-1", "--http-listen", "127.0.0.1:0"])
        .arg("--grpc-listen")
        .arg(format!("unix:{}", folder.join("agent.sock").display()))
        .arg("--pin-dir")
        .arg(pins)
        // Options cannot be given twice.
        .args(
            defaults
                .filter(|(name, _)| !options.iter().any(|o| o == name))
                .flat_map(|(name, value)| [name, value]),
        )
        .args(options)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the agent starts");
    let stderr = BufReader::new(child.stderr.take().expect("the agent has a stderr"));
    let (sender, log) = mpsc::channel();
    thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let mut agent = Agent {
        child,
        log,
        http: String::new(),
    };
    loop {
        let line = agent
            .log
            .recv_timeout(DEADLINE)
            .expect("the agent gets ready");
        if let Some((_, http)) = line.split_once("HTTP on ") {
            agent.http = http.into();
            return agent;
        }
    }
}

pub fn fresh_uid() -> String {
    let n = number();
    format!("{n:08x}-0000-4000-8000-000000000000")
}

pub fn fresh_id() -> String {
    format!("{:064x}", number())
}

fn number() -> u64 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    u64::from(NEXT.fetch_add(1, Ordering::Relaxed)) << 16 | u64::from(process::id() as u16)
}
