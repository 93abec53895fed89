//! Which events come, and under which names.

use std::collections::HashSet;
use std::fs;
use std::hash::Hash;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tcptracer_proto::v1::{self, EventType};
use tcptracer_testing::tests;
use tcptracer_testing::{Actor, Tool, own_mounts, wait_until};

use crate::client::{assert_end, identity, kinds, of};
use crate::node::{Container, Node, fresh_id, fresh_uid, pod};

tests![
    both_ends_are_named_in_full,
    the_kernel_drops_what_nobody_asked_for,
    a_pod_that_starts_later_has_its_first_connection_named,
    a_pod_that_is_told_of_late_is_named_from_then_on,
    an_event_that_waits_for_its_name_comes_before_the_end,
    a_container_is_named_soon_after_the_kubelet_has_its_id,
    nested_cgroups_are_the_containers,
    a_relabelled_pod_moves_in_and_out,
    a_relabelled_pod_moves_within_a_second,
    the_last_close_of_a_deleted_pod_is_named,
    pods_that_come_and_go_are_never_mistaken,
    the_host_is_not_a_pod,
    open_connections_are_listed_with_names,
    filter_sets_are_kept_for_other_tools,
    the_tool_shows_what_is_in_a_filter_set,
];

const LOCAL: &str = "127.0.0.1:0";

fn both_ends_are_named_in_full() {
    let mut node = Node::with(&["--pod-labels", "app,missing"]);
    let mut server = node.pod("shop", "db-0", json!({"app": "db", "tier": "data"}));
    let mut client = node.pod("shop", "cart-0", json!({"app": "cart"}));
    let agent = node.client();
    agent.wait_for_pods(2);
    let mut watch = agent.watch(of("shop"));

    let at = server.actor.listen(LOCAL);
    let connected = client.actor.connect(at);
    let accepted = server.actor.accept();
    let opened = watch.events(2);
    client.actor.close();
    server.actor.close();
    let closed = watch.events(2);

    assert_eq!(kinds(&opened), [EventType::Connect, EventType::Accept]);
    assert_eq!(kinds(&closed), [EventType::Close; 2]);
    for (pair, end, container, name, app) in [
        (0, &connected, &client, "cart-0", "cart"),
        (1, &accepted, &server, "db-0", "db"),
    ] {
        let close = closed
            .iter()
            .find(|e| {
                e.connection.as_ref().map(|c| &c.id)
                    == opened[pair].connection.as_ref().map(|c| &c.id)
            })
            .expect("each connection is closed");
        for event in [&opened[pair], close] {
            assert_end(event, end);
            assert_eq!(
                *identity(event),
                v1::Identity {
                    attribution: v1::Attribution::Resolved.into(),
                    namespace: "shop".into(),
                    pod: name.into(),
                    pod_uid: container.uid.clone(),
                    container: "main".into(),
                    container_id: container.id.clone(),
                    image: "registry/image:1".into(),
                    workload: Some(v1::Workload {
                        kind: "StatefulSet".into(),
                        name: "owner".into(),
                    }),
                    labels: [("app".to_owned(), app.to_owned())].into(),
                    host_network: false,
                    evidence: v1::Evidence::Cgroup.into(),
                }
            );
        }
    }
    let sequences: Vec<u64> = opened.iter().chain(&closed).map(|e| e.sequence).collect();
    assert_eq!(sequences, [1, 2, 3, 4]);
}

fn the_kernel_drops_what_nobody_asked_for() {
    let mut node = Node::with(&["--detach-after", "0"]);
    let mut server = node.pod("other", "db-0", json!({}));
    let mut client = node.pod("shop", "cart-0", json!({}));
    let agent = node.client();
    agent.wait_for_pods(2);
    assert_eq!(node.keys("cgroupmap"), HashSet::new());

    let mut watch = agent.watch(of("shop"));
    wait_until("the kernel is told", || {
        node.keys("cgroupmap") == HashSet::from([client.cgroup_id()])
    });
    let at = server.actor.listen(LOCAL);
    client.actor.connect(at);
    server.actor.accept();
    client.actor.close();
    server.actor.close();
    assert_eq!(
        kinds(&watch.events(2)),
        [EventType::Connect, EventType::Close]
    );

    // The server's two did not even reach the agent.
    client.actor.connect(at);
    let next = watch.events(1);
    assert_eq!(kinds(&next), [EventType::Connect]);
    assert_eq!(next[0].sequence, 3);
    drop(watch);
    wait_until("nothing is asked for", || node.keys("cgroupmap").is_empty());
}

/// A runtime takes a tenth of a second from the cgroup to the first process in it, in which the agent hears of it. Here
/// there is a process at once; the tests with runc do not wait.
fn wait_until_it_passes(node: &Node, container: &Container) {
    wait_until("the kernel lets it pass", || {
        node.keys("cgroupmap").contains(&container.cgroup_id())
    });
}

fn a_pod_that_starts_later_has_its_first_connection_named() {
    let mut node = Node::new();
    let mut server = node.pod("other", "db-0", json!({}));
    let agent = node.client();
    let at = server.actor.listen(LOCAL);
    let mut watch = agent.watch(of("shop"));

    let mut client = node.pod("shop", "cart-0", json!({}));
    wait_until_it_passes(&node, &client);
    client.actor.connect(at);
    let events = watch.events(1);
    assert_eq!(identity(&events[0]).pod, "cart-0");
    assert_eq!(identity(&events[0]).container_id, client.id);
}

/// A watch is ended while the agent holds one back, of a pod that it never hears of.
fn an_event_that_waits_for_its_name_comes_before_the_end() {
    let mut node = Node::new();
    let mut server = node.pod("other", "db-0", json!({}));
    let agent = node.client();
    let at = server.actor.listen(LOCAL);
    agent.wait_for_pods(1);
    let pods = v1::Filter {
        scope: v1::Scope::Pods.into(),
        netns: vec![node.netns.inode as u32],
        types: vec![EventType::Connect.into()],
        ..v1::Filter::default()
    };
    let mut watch = agent.watch_as("pods", vec![pods]);
    let mut client = node.container(fresh_uid(), fresh_id(), "cart");
    wait_until_it_passes(&node, &client);
    client.actor.connect(at);
    agent.end_watch("pods").expect("it is open");
    let (events, lost) = watch.rest();
    assert_eq!((events.len(), lost.len()), (1, 0));
    assert_eq!(identity(&events[0]).attribution(), v1::Attribution::Pending);
}

/// The agent learns of the pod only after its container: what happens until then is not told to those who
/// asked for a namespace, and is to those who asked for everything in pods.
fn a_pod_that_is_told_of_late_is_named_from_then_on() {
    let mut node = Node::new();
    let mut server = node.pod("other", "db-0", json!({}));
    let agent = node.client();
    let at = server.actor.listen(LOCAL);
    agent.wait_for_pods(1);
    let mut shop = agent.watch(of("shop"));
    let mut pods = agent.watch(vec![v1::Filter {
        scope: v1::Scope::Pods.into(),
        netns: vec![node.netns.inode as u32],
        ..v1::Filter::default()
    }]);

    let (uid, id) = (fresh_uid(), fresh_id());
    let mut client = node.container(uid.clone(), id.clone(), "cart");
    wait_until_it_passes(&node, &client);
    client.actor.connect(at);
    let unnamed = pods.events(1);
    assert_eq!(
        identity(&unnamed[0]).attribution(),
        v1::Attribution::Pending
    );
    assert_eq!(identity(&unnamed[0]).container_id, id);
    node.add_pod("shop", "cart-0", json!({}), &uid, &id);
    agent.wait_for_pods(2);
    client.actor.close();
    let named = shop.events(1);
    assert_eq!(kinds(&named), [EventType::Close]);
    assert_eq!(identity(&named[0]).pod, "cart-0");
}

/// A kubelet that reports one pod.
struct Kubelet {
    url: String,
    said: Arc<Mutex<(Value, u32)>>,
}

impl Kubelet {
    fn start(pod: Value) -> Self {
        let listener = TcpListener::bind(LOCAL).expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let said = Arc::new(Mutex::new((pod, 0)));
        let says = Arc::clone(&said);
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut head = BufReader::new(&stream).lines().map_while(Result::ok);
                head.find(|line| line.is_empty());
                let mut said = says.lock().expect("the test goes well");
                let list = json!({ "kind": "PodList", "items": [said.0] }).to_string();
                said.1 += 1;
                let length = list.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{list}"
                );
            }
        });
        Self { url, said }
    }

    /// Reports it so from now on.
    fn report(&self, pod: Value) {
        self.said.lock().expect("the kubelet goes on").0 = pod;
    }

    /// How often it has been asked.
    fn asked(&self) -> u32 {
        self.said.lock().expect("the kubelet goes on").1
    }
}

/// Of a pod with several containers each is named by its id, which the kubelet does not have as soon as there is a cgroup.
fn a_container_is_named_soon_after_the_kubelet_has_its_id() {
    // A busy machine may take its time, but not each time.
    const TRIES: usize = 3;
    let is_soon = (0..TRIES).any(|_| name_late() < Duration::from_secs(15));
    assert!(is_soon, "the kubelet is not asked again soon");
}

/// How long it takes from the container to its name, which the kubelet has from the third question on. Unless it is asked
/// at once and again, that is 16 s at least: it is asked every 8 s or less often.
fn name_late() -> Duration {
    let (uid, id) = (fresh_uid(), fresh_id());
    let started = pod("shop", "cart-0", &uid, &[("main", &id), ("sidecar", "")]);
    let mut created = started.clone();
    created["status"] = json!({});
    let kubelet = Kubelet::start(created);
    let options = ["--pods", "kubelet", "--kubelet-url", &kubelet.url];
    let node = Node::with(&options);
    let agent = node.client();
    wait_until("the pod is known", || {
        agent.info().pods.is_some_and(|p| p.pods == 1)
    });
    let before = kubelet.asked();
    let start = Instant::now();
    let mut cart = node.container(uid, id, "cart");
    let mut watch = agent.watch(of("shop"));
    let at = cart.actor.listen(LOCAL);
    cart.actor.connect(at);
    assert_eq!(identity(&watch.events(1)[0]).container, "");

    wait_until("the container is asked for", || {
        kubelet.asked() >= before + 2
    });
    kubelet.report(started);
    wait_until("the container is named", || {
        let open = agent.connections(of("shop"));
        let who = open.iter().filter_map(|c| c.identity.as_ref());
        who.map(|who| &who.container).eq(["main"])
    });
    start.elapsed()
}

fn nested_cgroups_are_the_containers() {
    let mut node = Node::new();
    let mut server = node.pod("other", "db-0", json!({}));
    let mut client = node.pod("shop", "cart-0", json!({}));
    let agent = node.client();
    agent.wait_for_pods(2);
    let mut watch = agent.watch(of("shop"));
    client.nest();

    let at = server.actor.listen(LOCAL);
    client.actor.connect(at);
    client.actor.close();
    let events = watch.events(2);
    assert_eq!(identity(&events[0]).container_id, client.id);
    assert_eq!(identity(&events[1]).container_id, client.id);
}

fn a_relabelled_pod_moves_in_and_out() {
    let mut node = Node::new();
    let mut server = node.pod("other", "db-0", json!({}));
    let mut client = node.pod("shop", "cart-0", json!({"app": "cart"}));
    let agent = node.client();
    agent.wait_for_pods(2);
    let at = server.actor.listen(LOCAL);
    let mut watch = agent.watch(vec![v1::Filter {
        label_selector: "app in (cart, basket),!canary".into(),
        ..v1::Filter::default()
    }]);

    let cgroup = HashSet::from([client.cgroup_id()]);
    client.actor.connect(at);
    watch.events(1);
    node.relabel("cart-0", json!({"app": "cart", "canary": "yes"}));
    wait_until("the pod is out", || node.keys("cgroupmap").is_empty());
    client.actor.close();
    node.relabel("cart-0", json!({"app": "basket"}));
    wait_until("the pod is in", || node.keys("cgroupmap") == cgroup);
    client.actor.connect(at);
    // Of the close in between nothing came.
    assert_eq!(kinds(&watch.events(1)), [EventType::Connect]);
}

/// Usually: a busy machine may take its time, but not all the time.
fn a_relabelled_pod_moves_within_a_second() {
    /// Even, so that it is inside at the end.
    const MOVES: usize = 10;
    let mut node = Node::new();
    let cart = node.pod("shop", "cart-0", json!({"app": "cart"}));
    let agent = node.client();
    agent.wait_for_pods(1);
    let _watch = agent.watch(vec![v1::Filter {
        label_selector: "app=cart".into(),
        ..v1::Filter::default()
    }]);
    let inside = HashSet::from([cart.cgroup_id()]);
    wait_until("a second is enough for most moves", || {
        let mut took: Vec<Duration> = (0..MOVES)
            .map(|n| {
                let is_out = n % 2 == 0;
                let start = Instant::now();
                node.relabel("cart-0", json!({"app": if is_out { "db" } else { "cart" }}));
                wait_until("the pod has moved", || {
                    node.keys("cgroupmap").is_empty() == is_out
                });
                start.elapsed()
            })
            .collect();
        took.sort();
        took[MOVES / 2] < Duration::from_secs(1)
    });
    assert_eq!(node.keys("cgroupmap"), inside);
}

fn the_last_close_of_a_deleted_pod_is_named() {
    let mut node = Node::new();
    let mut server = node.pod("other", "db-0", json!({}));
    let mut client = node.pod("shop", "cart-0", json!({}));
    let agent = node.client();
    let at = server.actor.listen(LOCAL);
    agent.wait_for_pods(2);
    let mut watch = agent.watch(of("shop"));

    client.actor.connect(at);
    server.actor.accept();
    watch.events(1);
    node.delete_pod("cart-0");
    wait_until("the pod is gone", || {
        agent.info().pods.is_some_and(|p| p.pods == 1)
    });
    client.remove();
    // The kernel may keep a socket for a minute that nobody has and whose peer stays.
    server.actor.close();
    let last = watch.events(1);
    assert_eq!(kinds(&last), [EventType::Close]);
    assert_eq!(identity(&last[0]).pod, "cart-0");
}

/// One after the other, they have the process ids and the inodes of mount namespaces of those before. Some are told by
/// the latter alone, as their process leaves its cgroup.
fn pods_that_come_and_go_are_never_mistaken() {
    const ROUNDS: usize = 10;
    /// Others may take what could be used again.
    const MAX_ROUNDS: usize = 50;
    let mut node = Node::with(&["--filter-set", "carts=shop:"]);
    let mut server = node.pod("other", "db-0", json!({}));
    let agent = node.client();
    let at = server.actor.listen(LOCAL);
    let mut watch = agent.watch(of("shop"));
    // A file shows what is there when it is read: a pod that nobody has read of has never been.
    let pods_are = |count| {
        wait_until("the pods are read", || {
            agent.info().pods.is_some_and(|p| p.pods == count)
        });
    };

    let (mut pids, mut mounts) = (Vec::new(), Vec::new());
    for round in 0..MAX_ROUNDS {
        if round >= ROUNDS && has_doubles(&pids) && has_doubles(&mounts) {
            break;
        }
        let name = format!("cart-{round}");
        pods_are(1);
        let actor = own_mounts(|| node.netns.enter(|| with_pid_of(&pids)));
        pids.push(actor.pid());
        let inode = actor.mntns();
        mounts.push(inode);
        let (uid, id) = (fresh_uid(), fresh_id());
        node.add_pod("shop", &name, json!({}), &uid, &id);
        let mut client = node.container_of(uid, id.clone(), actor);
        pods_are(2);
        // Subscribers' maps have what is gone as well; they are changed before those of sets.
        wait_until("its mounts are known", || {
            node.keys("carts/mntnsmap") == HashSet::from([inode])
        });
        let evidence = match round % 2 {
            0 => v1::Evidence::Cgroup,
            _ => v1::Evidence::Mntns,
        };
        if evidence == v1::Evidence::Mntns {
            client.leave();
        }

        client.actor.connect(at);
        server.actor.accept();
        node.delete_pod(&name);
        client.remove();
        // As above.
        server.actor.close();
        for event in watch.events(2) {
            let who = identity(&event);
            assert_eq!((&who.pod, &who.container_id), (&name, &id));
            assert_eq!(who.evidence(), evidence);
        }
        wait_until("its mounts are let go", || !node.agent.holds_mounts(inode));
        // Nor can others that use the map take another's for them.
        assert_eq!(node.keys("mntnsmap"), HashSet::new());
    }
    assert!(
        has_doubles(&pids) && has_doubles(&mounts),
        "nothing was used again: {pids:?} {mounts:?}"
    );
    node.assert_all_is_told([&mut watch]);
}

fn has_doubles<T: Eq + Hash>(values: &[T]) -> bool {
    values.iter().collect::<HashSet<_>>().len() < values.len()
}

/// A process with the pid of the last of those, if nobody else takes it.
fn with_pid_of(pids: &[u32]) -> Actor {
    const TRIES: usize = 20;
    let Some(wanted) = pids.last() else {
        return Actor::here("cart");
    };
    let start = || {
        // The kernel goes on from there. procfs does not know this sysctl.
        fs::write("/proc/sys/kernel/ns_last_pid", (wanted - 1).to_string())
            .expect("pids can be chosen");
        Actor::here("cart")
    };
    let mut actor = start();
    for _ in 1..TRIES {
        if actor.pid() == *wanted {
            break;
        }
        actor = start();
    }
    actor
}

fn the_host_is_not_a_pod() {
    let mut node = Node::ahead_of_others(|_| Vec::new());
    let agent = node.client();
    let mut server = tcptracer_testing::Actor::inside(&node.netns, "server");
    let mut client = node.pod("shop", "cart-0", json!({}));
    let at = server.listen(LOCAL);
    agent.wait_for_pods(1);
    let mut host = agent.watch(vec![v1::Filter {
        scope: v1::Scope::Host.into(),
        netns: vec![node.netns.inode as u32],
        ..v1::Filter::default()
    }]);
    let mut shop = agent.watch(of("shop"));

    client.actor.connect(at);
    let accepted = server.accept();
    let events = host.events(1);
    assert_eq!(kinds(&events), [EventType::Accept]);
    assert_end(&events[0], &accepted);
    assert_eq!(identity(&events[0]).attribution(), v1::Attribution::Host);
    assert_eq!(kinds(&shop.events(1)), [EventType::Connect]);
}

fn open_connections_are_listed_with_names() {
    let mut node = Node::new();
    let mut server = node.pod("shop", "db-0", json!({}));
    let mut client = node.pod("shop", "cart-0", json!({}));
    let agent = node.client();
    agent.wait_for_pods(2);
    assert_eq!(agent.connections(of("shop")), []);

    // Nobody subscribes, and still they are known.
    let at = server.actor.listen(LOCAL);
    client.actor.connect(at);
    server.actor.accept();
    let mut pods: Vec<_> = agent
        .connections(of("shop"))
        .into_iter()
        .map(|c| (c.role(), c.identity.map(|i| i.pod)))
        .collect();
    pods.sort();
    assert_eq!(
        pods,
        [
            (v1::Role::Client, Some("cart-0".to_owned())),
            (v1::Role::Server, Some("db-0".to_owned())),
        ]
    );
    assert_eq!(agent.connections(of("other")), []);
    client.actor.close();
    server.actor.close();
    wait_until("they are closed", || {
        agent.connections(of("shop")).is_empty()
    });
}

fn filter_sets_are_kept_for_other_tools() {
    let mut node = Node::with(&["--filter-set", "carts=shop:app=cart"]);
    let _other = node.pod("other", "cart-0", json!({"app": "cart"}));
    let cart = node.pod("shop", "cart-1", json!({"app": "cart"}));
    let _db = node.pod("shop", "db-0", json!({"app": "db"}));
    wait_until("the set has the pod", || {
        node.keys("carts/cgroupmap") == HashSet::from([cart.cgroup_id()])
    });
    cart.remove();
    wait_until("the set is empty", || {
        node.keys("carts/cgroupmap").is_empty()
    });
    node.agent.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(node.agent.end(), Some(0));
    assert!(!node.pins.exists());
}

fn the_tool_shows_what_is_in_a_filter_set() {
    let mut node = Node::with(&["--filter-set", "carts=shop:app=cart"]);
    let [mut cart, mut db] = ["cart", "db"].map(|app| {
        let (uid, id) = (fresh_uid(), fresh_id());
        node.add_pod("shop", app, json!({ "app": app }), &uid, &id);
        let actor = own_mounts(|| Actor::inside(&node.netns, app));
        node.container_of(uid, id, actor)
    });
    wait_until("the set has the pod", || {
        node.keys("carts/cgroupmap") == HashSet::from([cart.cgroup_id()])
            && node.keys("carts/mntnsmap") == HashSet::from([cart.actor.mntns()])
    });
    let at = db.actor.listen(LOCAL);
    for map in ["cgroupmap", "mntnsmap"] {
        let (option, pin) = (format!("--{map}"), node.pins.join("carts").join(map));
        let pin = pin.display().to_string();
        let mut tool = Tool::start(["-N", &node.netns.inode.to_string(), &option, &pin]);
        let [_, end] = [&mut db, &mut cart].map(|client| {
            let end = client.actor.connect(at);
            client.actor.close();
            end
        });
        tool.rows(2);
        assert_eq!(tool.stop().quietly(), [end.row('C'), end.row('X')], "{map}");
    }
}
