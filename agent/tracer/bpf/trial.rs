/*!
What this kernel lets us do, found out by trying.

Nothing is concluded from the kernel's version. Every program that may be used is loaded once for trial, all at
once where nothing is refused, and one of each kind in doubt is attached.
*/

use std::fs;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use memchr::memmem;

use super::hooks::{Group, HOOKS, Hook, Kind};
use super::plan::{Facts, Trial};
use super::skel::TcptracerSkelBuilder;

/// The kernel's description of its types.
const BTF: &str = "/sys/kernel/btf/vmlinux";

impl Facts {
    /// Looks and tries; whether cgroups can be told of only if asked. Leaves nothing behind.
    pub fn gather(cgroups: bool) -> Self {
        let mut facts = Self::look(cgroups);
        // Without these three every trial fails, and for a reason that is known.
        if facts.cap_bpf && facts.cap_perfmon && facts.btf {
            try_programs(&mut facts);
        }
        facts
    }

    /// Looks, and takes for granted that everything works that would be tried: to use it is a trial as well, and takes a
    /// fraction of the time.
    pub(super) fn assume(cgroups: bool) -> Self {
        Self {
            cookies: Trial::Works,
            trials: [const { Trial::Works }; HOOKS.len()],
            ..Self::look(cgroups)
        }
    }

    /// What needs no trial.
    fn look(cgroups: bool) -> Self {
        // Refused trials are expected and would fill the terminal.
        libbpf_rs::set_print(None);
        let cap = |c| {
            let has = |c| caps::has_cap(None, CapSet::Effective, c).unwrap_or(false);
            has(c) || has(Capability::CAP_SYS_ADMIN)
        };
        let mut facts = Self::none();
        facts.cap_bpf = cap(Capability::CAP_BPF);
        facts.cap_perfmon = cap(Capability::CAP_PERFMON);
        facts.btf = Path::new(BTF).exists();
        facts.cgroups = cgroups;
        facts.preemptible_tracepoints = has_preemptible_tracepoints();
        facts
    }
}

fn try_programs(facts: &mut Facts) {
    let asked = HOOKS.iter().filter(|hook| facts.ask_for(hook.group));
    let (spare, first): (Vec<_>, Vec<_>) = asked.partition(|hook| hook.unless.is_some());
    let (trampolines, others) = by_kind(first);
    // Nearly every kernel loads all of these, which takes less time at once than one by one.
    let all_work = try_all(facts, true, &others);
    facts.cookies = match all_work {
        true => Trial::Works,
        false => together(true, &Group::StateMachine.hooks().collect::<Vec<_>>()),
    };
    let cookies = facts.cookies == Trial::Works;
    if !all_work {
        try_each(facts, cookies, &others);
    }
    try_each(facts, cookies, &trampolines);
    let needed: Vec<_> = spare.into_iter().filter(|hook| facts.needs(hook)).collect();
    let (trampolines, others) = by_kind(needed);
    try_each(facts, cookies, &trampolines);
    try_each(facts, cookies, &others);
}

/// Trampolines, and others. What forbids one trampoline mostly forbids all.
fn by_kind<'h>(hooks: impl IntoIterator<Item = &'h Hook>) -> (Vec<&'h Hook>, Vec<&'h Hook>) {
    let hooks = hooks.into_iter();
    hooks.partition(|hook| hook.is_trampoline())
}

/// By groups, and one by one, only if need be, to tell which it is that does not work.
fn try_each(facts: &mut Facts, cookies: bool, hooks: &[&Hook]) {
    if hooks.is_empty() || try_all(facts, cookies, hooks) || hooks.len() == 1 {
        return;
    }
    let are_mixed = hooks.iter().any(|hook| hook.group != hooks[0].group);
    for part in hooks.chunk_by(|a, b| are_mixed && a.group == b.group) {
        try_each(facts, cookies, part);
    }
}

/// Sets the trial of all of them. Whether they work.
fn try_all(facts: &mut Facts, cookies: bool, hooks: &[&Hook]) -> bool {
    let trial = together(cookies, hooks);
    for hook in hooks {
        facts.set(hook.place, trial.clone());
    }
    trial == Trial::Works
}

/// The trial of several programs, which may ask for the cookies of sockets or not.
fn together(cookies: bool, hooks: &[&Hook]) -> Trial {
    let is_missing = |hook: &&Hook| hook.kind == Kind::Tp && tracepoint(hook.target).is_none();
    if hooks.iter().any(is_missing) {
        return Trial::Missing;
    }
    match try_them(cookies, hooks) {
        Ok(()) => Trial::Works,
        Err(e) => Trial::Refused(e.to_string()),
    }
}

/// The folder of a tracepoint in tracefs, if that is mounted and the kernel has it.
fn tracepoint(name: &str) -> Option<PathBuf> {
    ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
        .iter()
        .map(|root| Path::new(root).join("events").join(name))
        .find(|folder| folder.join("id").exists())
}

/// Tracepoints are protected by a fast kind of SRCU where they used to disable preemption. Up to 6.12
/// there was one of that name for idle CPUs; SRCU had no kinds then. Both are names of that kind only, so they are looked for
/// as text: to parse all types takes as long as to load all programs.
fn has_preemptible_tracepoints() -> bool {
    let types = fs::read(BTF).unwrap_or_default();
    let has = |name: &str| memmem::find(&types, name.as_bytes()).is_some();
    has("\0srcu_reader_flavor\0") && has("\0tracepoint_srcu_srcu_data\0")
}

fn try_them(cookies: bool, hooks: &[&Hook]) -> libbpf_rs::Result<()> {
    let mut object = MaybeUninit::uninit();
    let mut skel = TcptracerSkelBuilder::default().open(&mut object)?;
    skel.maps.cgroupmap.set_autocreate(false)?;
    skel.maps.mntnsmap.set_autocreate(false)?;
    // The trial needs the maps, not their room.
    skel.maps.conns.set_max_entries(1)?;
    skel.maps.events.set_max_entries(4096)?;
    if let Some(rodata) = skel.maps.rodata_data.as_deref_mut() {
        // With all that tracing may use.
        rodata.tt_config.cookies = cookies.into();
        rodata.tt_config.remembers = cookies.into();
        rodata.tt_config.has_sets = 1;
    }
    for hook in &HOOKS {
        let is_tried = hooks.iter().any(|tried| tried.place == hook.place);
        (hook.open)(&mut skel.progs).set_autoload(is_tried);
    }
    let skel = skel.load()?;
    // Some turn out not to work no sooner: processors without trampolines, perf events that are forbidden. What
    // forbids one forbids all of its kind, and detaching can take the kernel long.
    for kind in [Kind::Fexit, Kind::Fentry, Kind::Tp] {
        if let Some(hook) = hooks.iter().find(|hook| hook.kind == kind) {
            drop((hook.loaded)(&skel.progs).attach()?);
        }
    }
    Ok(())
}
