//! Pods that come, change and go while somebody watches.

use super::ends::{assert_ends, client, line};
use crate::cluster::{kubectl, wait_ready, wait_until};
use crate::plugin::{Watch, text};
use crate::world::{PORT, SLEEP, address, container, made, nodes, pod, visit};

/// Nothing is known of it when the watch starts, and it connects as the first thing it does.
pub fn new_pod() {
    let [_, second] = nodes();
    let watch = Watch::start_early(&["-n", "shop", "-l", "app=late"]);
    watch.said("no pod is selected");
    let script = format!(
        "wget -q -O /dev/null http://{}:{PORT}/; {SLEEP}",
        address("depot", "db")
    );
    let _late = made(
        "shop",
        &pod("late", second, vec![container("main", &script)]),
    );
    // The plugin hears of the pod when it is scheduled, before its image is unpacked.
    assert_ends(&watch.events(2), &[client(second, "shop/late/main")]);
    watch.end_well();
}

pub fn relabelled() {
    let [_, second] = nodes();
    let db = address("depot", "db");
    let _pods = ["stays", "leaves"].map(|name| {
        let mut pod = pod(name, second, vec![container("main", SLEEP)]);
        pod["metadata"]["labels"]["tier"] = "front".into();
        made("shop", &pod)
    });
    wait_ready("shop", &["-l", "tier=front"]);
    let watch = Watch::start(&["-n", "shop", "-l", "tier=front"], &[second]);
    let ask = |name: &str| visit("shop", name, "main", &db, PORT);
    ask("leaves");
    assert_ends(&watch.events(2), &[client(second, "shop/leaves/main")]);

    kubectl(&[
        "label",
        "pod",
        "-n",
        "shop",
        "leaves",
        "tier=back",
        "--overwrite",
    ]);
    // An agent hears of it some time after us.
    wait_until("it is not shown any more", || {
        ask("leaves");
        ask("stays");
        let first = watch.event();
        let is_shown = text(&first, "pod") == "leaves";
        watch.events(if is_shown { 3 } else { 1 });
        !is_shown
    });
    watch.end_well();
}

pub fn deleted() {
    let [_, second] = nodes();
    let script = format!("sleep 1000000 | exec nc {} {PORT}", address("depot", "db"));
    let watch = Watch::start_early(&["-n", "shop", "-l", "app=brief"]);
    watch.said("no pod is selected");
    let brief = made(
        "shop",
        &pod("brief", second, vec![container("main", &script)]),
    );
    assert_eq!(
        line(&watch.event()),
        format!("connect {second} shop/brief/main nc")
    );
    drop(brief);
    assert_eq!(
        line(&watch.event()),
        format!("close {second} shop/brief/main nc")
    );
    watch.end_well();
}
