//! A node: an agent, a file of pods, and containers that are cgroups with a process.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use libbpf_rs::{MapCore, MapHandle};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::{FDTarget, Process};
use serde_json::{Value, json};
use tcptracer_testing::places::sweep;
use tcptracer_testing::{
    Actor, Cgroup, DEADLINE, Netns, attached_programs, mount_points, v2_mount, wait_until,
};
use tempfile::TempDir;

use crate::client::{Client, Watch};

/// Room for a few, unless a test says otherwise. Of connections the whole host's are followed.
const MAX_CONTAINERS: (&str, &str) = ("--max-containers", "64");

/// A container: the cgroup and the process in it. What is in it ends before it does.
pub struct Container {
    pub actor: Actor,
    pub id: String,
    pub uid: String,
    nested: Vec<Cgroup>,
    cgroup: Cgroup,
    _pod: Cgroup,
}

impl Container {
    /// The id of its cgroup.
    pub fn cgroup_id(&self) -> u64 {
        self.cgroup.id()
    }

    /// Moves its process into a cgroup below its own.
    pub fn nest(&mut self) {
        self.nest_as(OsStr::new("nested"));
    }

    /// The same, of this name.
    pub fn nest_as(&mut self, name: &OsStr) {
        let nested = self.cgroup.child(name);
        nested.add(self.actor.pid());
        self.nested.push(nested);
    }

    /// Moves its process so many cgroups below its own, each in the one before.
    pub fn nest_deep(&mut self, levels: usize) {
        for _ in 0..levels {
            let deepest = self.nested.first().unwrap_or(&self.cgroup);
            let deeper = deepest.child("n");
            // They are removed in this order.
            self.nested.insert(0, deeper);
        }
        if let Some(deepest) = self.nested.first() {
            deepest.add(self.actor.pid());
        }
    }

    /// Moves its process out of it, into the root of all cgroups.
    pub fn leave(&self) {
        let root = v2_mount().join("cgroup.procs");
        fs::write(root, self.actor.pid().to_string()).expect("a process can be moved");
    }

    /// Ends its process and removes its cgroup.
    pub fn remove(mut self) {
        self.actor.exit();
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
        let mounts = FDTarget::Other("mnt".into(), inode);
        self.files().any(|file| file == mounts)
    }

    /// What it has open.
    pub fn files(&self) -> impl Iterator<Item = FDTarget> {
        let process = Process::new(self.child.id().cast_signed());
        let files = process.and_then(|process| process.fd());
        let files = files.expect("the agent runs").flatten();
        files.map(|file| file.target)
    }

    /// The programs that it has attached: their names, in order.
    pub fn programs(&self) -> Vec<String> {
        attached_programs(self.child.id())
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
    pins: PathBuf,
    burstable: Cgroup,
    _kubepods: Cgroup,
    /// The root of the node's.
    root: Cgroup,
    /// What is above that, the last first.
    _above: Vec<Cgroup>,
}

impl Place {
    fn new() -> Self {
        Self::at(Cgroup::new(), Vec::new())
    }

    /// The path of its root has at least so many bytes.
    fn below(length: usize) -> Self {
        const NAME: usize = 200;
        let mut above = vec![Cgroup::new()];
        while above[0].path_in_hierarchy().len() < length {
            let deeper = above[0].child("n".repeat(NAME));
            above.insert(0, deeper);
        }
        Self::at(above.remove(0), above)
    }

    fn at(root: Cgroup, above: Vec<Cgroup>) -> Self {
        let kubepods = root.child("kubepods");
        let path = root.path_in_hierarchy();
        let name = path.split('/').nth(1).expect("the root's has a name");
        Self {
            pins: Path::new("/sys/fs/bpf").join(name),
            burstable: kubepods.child("burstable"),
            _kubepods: kubepods,
            root,
            _above: above,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.pins);
        // A runtime has made cgroups in the other hierarchies as well.
        let root = self.root.path_in_hierarchy();
        let others = cgroups_at("cgroup", &root);
        if thread::panicking() {
            return others.iter().for_each(|cgroup| sweep(cgroup));
        }
        wait_until("the node's cgroups are empty", || {
            for below in ["/kubepods/burstable", "/kubepods", ""] {
                remove(&cgroups_at("cgroup", &format!("{root}{below}")));
            }
            !others.iter().any(|cgroup| cgroup.exists())
        });
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

    /// With more options for the agent. It sees no cgroups but the node's.
    pub fn with(options: &[&str]) -> Self {
        Self::launched(&[], |cgroups| Self::sees_only(cgroups, options))
    }

    /// As [`Self::new`]. The path of its root cgroup has at least so many bytes.
    pub fn below(length: usize) -> Self {
        Self::launched_in(Place::below(length), &[], |cgroups| {
            Self::sees_only(cgroups, &[])
        })
    }

    fn sees_only(cgroups: &Path, options: &[&str]) -> Vec<String> {
        let cgroups = cgroups.to_str().expect("UTF-8");
        let all = [&["--cgroupfs", cgroups], options].concat();
        all.iter().map(ToString::to_string).collect()
    }

    /// With an agent that sees all cgroups, as that of a real node. There may be containers of others: until it has
    /// named one of the node's, it takes them for the node's as well.
    pub fn on_host() -> Self {
        Self::launched(&[], |_| Vec::new())
    }

    /// The same, before everybody else on a busy machine: who asks for the host's events gets those of strangers up to the
    /// agent, which is not to lose any.
    pub fn ahead_of_others(options: impl FnOnce(&Path) -> Vec<String>) -> Self {
        Self::launched(&["nice", "-n", "-20"], options)
    }

    /// With an agent that is run by another command, and options that depend on where the node's cgroups are.
    pub fn launched(launcher: &[&str], options: impl FnOnce(&Path) -> Vec<String>) -> Self {
        Self::launched_in(Place::new(), launcher, options)
    }

    fn launched_in(
        place: Place,
        launcher: &[&str],
        options: impl FnOnce(&Path) -> Vec<String>,
    ) -> Self {
        let mount = v2_mount();
        let folder = TempDir::new().expect("a folder for the test");
        let pins = place.pins.clone();
        let launcher: Vec<String> = launcher.iter().map(ToString::to_string).collect();
        let options = options(place.root.path());
        write_pods(folder.path(), &[]);
        let agent = start(&launcher, folder.path(), &pins, &mount, &options);
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
        format!("{}/pod{uid}", self.place.burstable.path_in_hierarchy())
    }

    /// Makes cgroups that are no containers, and removes them.
    pub fn make_cgroups(&self, count: usize) {
        let made = (0..count).map(|n| self.place.burstable.child(format!("other-{n}")));
        drop(made.collect::<Vec<_>>());
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
        let pod = self.place.burstable.child(format!("pod{uid}"));
        let cgroup = pod.child(&id);
        cgroup.add(actor.pid());
        Container {
            actor,
            id,
            uid,
            nested: Vec::new(),
            cgroup,
            _pod: pod,
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
            &self.mount,
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

    /// Ends the agent, which hands out all that has happened: nothing that these streams have not had yet.
    #[track_caller]
    pub fn assert_all_is_told<const N: usize>(&self, watches: [&mut Watch<'_>; N]) {
        self.agent.signal(Signal::SIGTERM);
        for watch in watches {
            assert_eq!(watch.message(), None);
        }
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

/// Where a cgroup is, or could be, in the hierarchies of this type: a runtime makes it in every one.
fn cgroups_at(kind: &str, path: &str) -> Vec<PathBuf> {
    let mounts = mount_points(kind).into_iter();
    mounts.map(|mount| mount.join(&path[1..])).collect()
}

/// Removes a cgroup of every hierarchy if nothing is in it.
pub fn remove_cgroup(path: &str) {
    for kind in ["cgroup2", "cgroup"] {
        remove(&cgroups_at(kind, path));
    }
}

fn remove(cgroups: &[PathBuf]) {
    for cgroup in cgroups {
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
fn start(
    launcher: &[String],
    folder: &Path,
    pins: &Path,
    mount: &Path,
    options: &[String],
) -> Agent {
    let mut command = match launcher {
        [] => command(),
        [program, arguments @ ..] => {
            let mut launched = Command::new(program);
            launched.args(arguments).arg(command().get_program());
            launched
        }
    };
    let pods = format!("file:{}", folder.join("pods.json").display());
    // Where there are two hierarchies, containers of others do not decide which one it looks at.
    let cgroups = mount.to_str().expect("UTF-8");
    let defaults = [MAX_CONTAINERS, ("--pods", &pods), ("--cgroupfs", cgroups)];
    let mut child = command
        .args(["--node-name", "node-1", "--http-listen", "127.0.0.1:0"])
        .arg("--grpc-listen")
        .arg(format!("unix:{}", folder.join("agent.sock").display()))
        .arg("--pin-dir")
        .arg(pins)
        // Options cannot be given twice.
        .args(
            defaults
                .into_iter()
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
    format!("{:08x}-0000-4000-8000-{:012x}", process::id(), number())
}

pub fn fresh_id() -> String {
    format!("{:032x}{:032x}", process::id(), number())
}

fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
