/*!
From a configuration to loaded and attached programs, and the snapshot of what was there before.
*/

use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Iter, Link, MapCore, MapFlags, MapHandle, OpenMapMut, OpenObject, ProgramMut};

use super::config::{Config, Family};
use super::maps;
use super::probe::{Facts, Plan, unload_all};
use super::skel::{OpenTcptracerSkel, TcptracerSkel, TcptracerSkelBuilder};
use super::wire::{self, EVENT_SIZE};
use crate::event::Event;

/// Finds out what this kernel allows, and loads it with the user's configuration. Nothing is attached.
pub fn load<'o>(
    config: &Config,
    object: &'o mut MaybeUninit<OpenObject>,
) -> Result<(TcptracerSkel<'o>, Plan)> {
    let plan = Plan::from_facts(&Facts::gather(config.cgroups.is_some()))?;
    let mut skel = TcptracerSkelBuilder::default()
        .open(object)
        .context("cannot open the BPF object")?;

    choose_programs(&mut skel, &plan, config);
    set_config(&mut skel, config, &plan)?;
    skel.maps
        .events
        .set_max_entries(config.ring_bytes)
        .with_context(|| format!("cannot set the ring to {} bytes", config.ring_bytes))?;
    skel.maps
        .conns
        .set_max_entries(config.max_connections)
        .with_context(|| {
            format!(
                "cannot make room for {} connections",
                config.max_connections
            )
        })?;
    let filter = &config.filter;
    let cgroups = open_filter(&mut skel.maps.cgroupmap, "--cgroupmap", &filter.cgroup_map)?;
    let mounts = open_filter(&mut skel.maps.mntnsmap, "--mntnsmap", &filter.mntns_map)?;
    let skel = skel.load().with_context(|| {
        format!(
            "cannot load the BPF programs (ring of {} bytes, {} connections)",
            config.ring_bytes, config.max_connections
        )
    })?;
    for (outer, inner) in [
        (&skel.maps.cgroupmap, cgroups),
        (&skel.maps.mntnsmap, mounts),
    ] {
        if let Some(map) = inner {
            let fd = map.as_fd().as_raw_fd().to_ne_bytes();
            outer
                .update(&0u32.to_ne_bytes(), &fd, MapFlags::ANY)
                .context("cannot use the filter map")?;
        }
    }
    Ok((skel, plan))
}

/// Opens the user's map and shapes ours, which is to hold it, by it. Without one ours is not made.
fn open_filter(
    outer: &mut OpenMapMut<'_>,
    option: &str,
    path: &Option<PathBuf>,
) -> Result<Option<MapHandle>> {
    let Some(path) = path else {
        outer.set_autocreate(false)?;
        return Ok(None);
    };
    let map = maps::open_pinned(option, path)?;
    outer.set_inner_map_fd(map.as_fd())?;
    Ok(Some(map))
}

fn choose_programs(skel: &mut OpenTcptracerSkel<'_>, plan: &Plan, config: &Config) {
    let (failed, cgroups) = (config.failed, config.cgroups.is_some());
    unload_all(skel);
    let progs = &mut skel.progs;
    progs.tt_set_state.set_autoload(true);
    progs.tt_destroy_sock.set_autoload(true);
    progs.tt_receive_reset.set_autoload(true);
    progs.tt_set_state_again.set_autoload(plan.twice);
    progs.tt_destroy_sock_again.set_autoload(plan.twice);
    progs.tt_inet_csk_accept.set_autoload(plan.fexit_accept);
    progs.tt_exit_accept.set_autoload(plan.syscalls);
    progs.tt_exit_accept4.set_autoload(plan.syscalls);
    progs
        .tt_io_uring_complete
        .set_autoload(plan.io_uring_accept);
    progs.tt_enter_connect.set_autoload(failed && plan.syscalls);
    progs.tt_exit_connect.set_autoload(failed && plan.syscalls);
    progs.tt_cgroup_mkdir.set_autoload(cgroups);
    progs.tt_cgroup_rmdir.set_autoload(cgroups);
    progs.tt_seed_listeners.set_autoload(plan.snapshot);
    progs.tt_seed_connections.set_autoload(plan.snapshot);
}

fn set_config(skel: &mut OpenTcptracerSkel<'_>, config: &Config, plan: &Plan) -> Result<()> {
    let filter = &config.filter;
    let rodata = skel
        .maps
        .rodata_data
        .as_deref_mut()
        .context("the BPF object has no .rodata")?;
    let to = &mut rodata.tt_config;

    to.pid = filter.pid.map_or(0, Into::into);
    to.netns = filter.netns.map_or(0, Into::into);
    to.family = match filter.family {
        None => 0,
        Some(Family::V4) => wire::AF_INET,
        Some(Family::V6) => wire::AF_INET6,
    };
    to.by_cgroup = filter.cgroup_map.is_some().into();
    to.by_mntns = filter.mntns_map.is_some().into();
    to.failed = config.failed.into();
    to.list_existing = config.existing.into();
    to.cookies = plan.cookies.into();
    to.fexit_accept = plan.fexit_accept.into();
    to.hierarchy = config.cgroups.unwrap_or(0);
    to.either = filter.either_map.into();
    Ok(())
}

/// Attaches what the plan has, the state machine last: whatever it reports, the other hooks see.
pub fn attach(skel: &TcptracerSkel<'_>, plan: &Plan, config: &Config) -> Result<Vec<Link>> {
    let progs = &skel.progs;
    let failed = config.failed;
    let mut chosen: Vec<(&str, &ProgramMut<'_>)> = Vec::new();

    if config.cgroups.is_some() {
        chosen.push(("cgroup_mkdir", &progs.tt_cgroup_mkdir));
        chosen.push(("cgroup_rmdir", &progs.tt_cgroup_rmdir));
    }

    if plan.syscalls {
        chosen.push(("the exit of accept", &progs.tt_exit_accept));
        chosen.push(("the exit of accept4", &progs.tt_exit_accept4));
    }
    if plan.fexit_accept {
        chosen.push(("inet_csk_accept", &progs.tt_inet_csk_accept));
    }
    if failed && plan.syscalls {
        chosen.push(("the entry of connect", &progs.tt_enter_connect));
        chosen.push(("the exit of connect", &progs.tt_exit_connect));
    }
    chosen.push(("tcp_receive_reset", &progs.tt_receive_reset));
    chosen.push(("tcp_destroy_sock", &progs.tt_destroy_sock));
    chosen.push(("inet_sock_set_state", &progs.tt_set_state));
    if plan.twice {
        chosen.push(("tcp_destroy_sock", &progs.tt_destroy_sock_again));
        chosen.push(("inet_sock_set_state", &progs.tt_set_state_again));
    }
    chosen
        .into_iter()
        .map(|(hook, prog)| {
            prog.attach()
                .with_context(|| format!("cannot attach to {hook}"))
        })
        .collect()
}

/// Seeds the state with what is open already; returns the connections the user asked to see.
pub fn snapshot(skel: &TcptracerSkel<'_>) -> Result<Vec<Event>> {
    let mut bytes = Vec::new();

    for prog in [
        &skel.progs.tt_seed_listeners,
        &skel.progs.tt_seed_connections,
    ] {
        let link = prog.attach().context("cannot attach the snapshot")?;
        let mut iter = Iter::new(&link).context("cannot start the snapshot")?;
        read_all(&mut iter, &mut bytes).context("cannot take the snapshot")?;
    }
    bytes
        .chunks(EVENT_SIZE)
        .map(|record| wire::decode_event(record).context("the snapshot holds"))
        .collect()
}

/// The iterator asks for another try when it has walked a million files in one read.
fn read_all(from: &mut impl Read, to: &mut Vec<u8>) -> io::Result<()> {
    loop {
        match from.read_to_end(to) {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}
