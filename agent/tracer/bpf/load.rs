/*!
From a configuration to loaded programs, and what those find that are iterators: the snapshot of what is there.
*/

use std::collections::HashMap;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Iter, Link, MapCore, MapFlags, MapHandle, OpenMapMut, OpenObject};
use tcptracer_event::Event;

use super::config::{Config, Family};
use super::hooks::{Group, HOOKS, Hook};
use super::maps;
use super::plan::{Facts, Plan, When};
use super::skel::{OpenTcptracerSkel, TcptracerSkel, TcptracerSkelBuilder};
use super::wire::{self, TT_WAYS};

/// Loads what these facts allow, with the user's configuration. Nothing is attached.
pub fn load<'o>(
    config: &Config,
    facts: &Facts,
    object: &'o mut MaybeUninit<OpenObject>,
) -> Result<(TcptracerSkel<'o>, Plan)> {
    let plan = Plan::from_facts(facts)?;
    let mut skel = TcptracerSkelBuilder::default()
        .open(object)
        .context("cannot open the BPF object")?;

    let table = Table::of(config.max_connections);
    choose_programs(&mut skel, &plan, config);
    set_config(&mut skel, config, &plan, &table)?;
    skel.maps
        .events
        .set_max_entries(config.ring_bytes)
        .with_context(|| format!("cannot set the ring to {} bytes", config.ring_bytes))?;
    let no_room = || {
        let connections = config.max_connections;
        format!("cannot make room for {connections} connections")
    };
    let sets = table.sets.max(1);
    skel.maps.sets.set_max_entries(sets).with_context(no_room)?;
    let rest = table.rest;
    skel.maps
        .conns
        .set_max_entries(rest)
        .with_context(no_room)?;
    let filter = &config.filter;
    skel.maps
        .memories
        .set_autocreate(plan.when(Group::Memory, config) != When::Never)?;
    // Nobody asks for them.
    if filter.cgroup_map.is_none() || filter.owns_maps {
        skel.maps.cgroup_parents.set_max_entries(1)?;
    }
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

/// How the table of connections is laid out.
struct Table {
    /// Sets: a power of two, or none.
    sets: u32,
    /// Entries of the hash map for those that find their set full.
    rest: u32,
}

impl Table {
    /// For so many connections. When all are full, hardly any slot is empty.
    const fn of(connections: u32) -> Self {
        let sets = match connections / TT_WAYS / 2 {
            half if half > 0 && cfg!(target_arch = "x86_64") => 1 << half.ilog2(),
            _ => 0,
        };
        Self {
            sets,
            rest: connections - sets * TT_WAYS,
        }
    }
}

/// Loads the programs of some hooks once more, with the maps of what is loaded.
pub fn load_again<'o>(
    loaded: &TcptracerSkel<'_>,
    hooks: &[&Hook],
    object: &'o mut MaybeUninit<OpenObject>,
) -> Result<TcptracerSkel<'o>> {
    let mut skel = TcptracerSkelBuilder::default()
        .open(object)
        .context("cannot open the BPF object")?;
    for hook in &HOOKS {
        let is_asked = hooks.iter().any(|asked| asked.place == hook.place);
        (hook.open)(&mut skel.progs).set_autoload(is_asked);
    }
    // One that is not made has no information.
    let maps = loaded.object().maps().filter(|map| map.info().is_ok());
    let maps: HashMap<_, _> = maps.map(|map| (map.name().to_owned(), map)).collect();
    for mut map in skel.open_object_mut().maps_mut() {
        match maps.get(map.name()) {
            Some(loaded) => map.reuse_fd(loaded.as_fd())?,
            None => map.set_autocreate(false)?,
        }
    }
    skel.load().context("cannot load the BPF programs again")
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
    for hook in &HOOKS {
        let when = plan.when(hook.group, config);
        (hook.open)(&mut skel.progs).set_autoload(when != When::Never);
    }
}

fn set_config(
    skel: &mut OpenTcptracerSkel<'_>,
    config: &Config,
    plan: &Plan,
    table: &Table,
) -> Result<()> {
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
    to.has_sets = (table.sets > 0).into();
    to.set_mask = table.sets.saturating_sub(1);
    to.hierarchy = config.cgroups.unwrap_or(0);
    to.either = filter.either_map.into();
    to.owns_maps = filter.owns_maps.into();
    let remembers = plan.when(Group::Memory, config) != When::Never;
    to.remembers = remembers.into();
    to.skips = plan.is_preempted().into();
    to.own_ids = (config.on_demand.is_some() && !remembers).into();
    let bss = skel.maps.bss_data.as_deref_mut();
    bss.context("the BPF object has no .bss")?.tt_cookieless = (!plan.cookies).into();
    Ok(())
}

/// Seeds the state with what is open already; returns the connections the user asked to see, and how many of them
/// could not be decoded.
pub fn snapshot(skel: &TcptracerSkel<'_>) -> Result<(Vec<Event>, u64)> {
    let bytes = iterate(skel, Group::Snapshot).context("cannot take the snapshot")?;
    Ok(wire::decode_events(&bytes))
}

/// Runs the programs of a group of iterators, one after the other; returns what they have written.
pub fn iterate(skel: &TcptracerSkel<'_>, group: Group) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for hook in group.hooks() {
        let link = attach_iterator(skel, hook)?;
        let mut iter = Iter::new(&link).with_context(|| format!("cannot start {}", hook.name))?;
        read_all(&mut iter, &mut bytes).with_context(|| format!("cannot run {}", hook.name))?;
    }
    Ok(bytes)
}

/// Makes an iterator ready to be run.
pub fn attach_iterator(skel: &TcptracerSkel<'_>, hook: &Hook) -> Result<Link> {
    let prog = (hook.loaded)(&skel.progs);
    prog.attach()
        .with_context(|| format!("cannot attach {}", hook.name))
}

/// The iterator asks for another try when it has walked a million files in one read.
pub fn read_all(from: &mut impl Read, to: &mut Vec<u8>) -> io::Result<()> {
    loop {
        match from.read_to_end(to) {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}
