/*!
What this kernel lets us do, found out by trying.

Nothing is concluded from the kernel's version. Every program that may be used is loaded once for trial, all at
once where nothing is refused, and one of each kind in doubt is attached.
*/

use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::{Struct, Var};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};

use super::hooks::{HOOKS, Kind, Place};
use super::plan::{CGROUPS, Facts, SNAPSHOT, STATE_MACHINE, SYSCALLS, Trial};
use super::skel::TcptracerSkelBuilder;

impl Facts {
    /// Looks and tries; whether cgroups can be told of only if asked. Leaves nothing behind.
    pub fn gather(cgroups: bool) -> Self {
        // Refused trials are expected and would fill the terminal.
        libbpf_rs::set_print(None);
        let cap = |c| {
            let has = |c| caps::has_cap(None, CapSet::Effective, c).unwrap_or(false);
            has(c) || has(Capability::CAP_SYS_ADMIN)
        };
        let mut facts = Self::none();
        facts.cap_bpf = cap(Capability::CAP_BPF);
        facts.cap_perfmon = cap(Capability::CAP_PERFMON);
        facts.btf = Path::new("/sys/kernel/btf/vmlinux").exists();
        facts.cgroups = cgroups;
        // Without these three every trial fails, and for a reason that is known.
        if facts.cap_bpf && facts.cap_perfmon && facts.btf {
            facts.preemptible_tracepoints = has_preemptible_tracepoints();
            try_programs(&mut facts);
        }
        facts
    }
}

fn try_programs(facts: &mut Facts) {
    const IO_URING: [Place; 1] = [Place::IoUring];
    // What forbids one trampoline mostly forbids all.
    const TRAMPOLINES: [Place; 2] = [Place::InetCskAccept, Place::DoneWithError];
    let mut groups: Vec<&[Place]> = vec![&STATE_MACHINE, &SYSCALLS, &IO_URING, &SNAPSHOT];
    if facts.cgroups {
        groups.push(&CGROUPS);
    }
    // Nearly every kernel loads all of these, which takes less time at once than one by one.
    let all = groups.concat();
    let mut cookies = true;
    let mut all_work = together(cookies, &all) == Trial::Works;
    facts.cookies = match all_work {
        true => Trial::Works,
        false => together(cookies, &STATE_MACHINE),
    };
    if facts.cookies != Trial::Works {
        cookies = false;
        all_work = together(cookies, &all) == Trial::Works;
    }
    match all_work {
        true => all.iter().for_each(|p| facts.set(*p, Trial::Works)),
        false => groups.iter().for_each(|g| try_each(facts, cookies, g)),
    }
    try_each(facts, cookies, &TRAMPOLINES);
    if !facts.works(Place::DoneWithError) {
        try_each(facts, cookies, &[Place::ErrorReport]);
    }
}

/// One by one only if need be, to tell which it is that does not work.
fn try_each(facts: &mut Facts, cookies: bool, places: &[Place]) {
    let trial = together(cookies, places);
    for place in places {
        let trial = match (&trial, places.len()) {
            (Trial::Works, _) | (_, 1) => trial.clone(),
            _ => together(cookies, &[*place]),
        };
        facts.set(*place, trial);
    }
}

/// The trial of several programs, which may ask for the cookies of sockets or not.
fn together(cookies: bool, places: &[Place]) -> Trial {
    let is_missing = |place: &Place| {
        let hook = place.hook();
        hook.kind == Kind::Tp && tracepoint(hook.target).is_none()
    };
    if places.iter().any(is_missing) {
        return Trial::Missing;
    }
    match try_them(cookies, places) {
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
/// there was one of that name for idle CPUs; SRCU had no kinds then.
fn has_preemptible_tracepoints() -> bool {
    let Ok(btf) = Btf::from_vmlinux() else {
        return false;
    };
    let kinds = btf
        .type_by_name::<Struct<'_>>("srcu_data")
        .is_some_and(|data| {
            data.iter()
                .any(|m| m.name == Some("srcu_reader_flavor".as_ref()))
        });
    kinds
        && btf
            .type_by_name::<Var<'_>>("tracepoint_srcu_srcu_data")
            .is_some()
}

fn try_them(cookies: bool, places: &[Place]) -> libbpf_rs::Result<()> {
    let mut object = MaybeUninit::uninit();
    let mut skel = TcptracerSkelBuilder::default().open(&mut object)?;
    skel.maps.cgroupmap.set_autocreate(false)?;
    skel.maps.mntnsmap.set_autocreate(false)?;
    // The trial needs the maps, not their room.
    skel.maps.conns.set_max_entries(1)?;
    skel.maps.events.set_max_entries(4096)?;
    if let Some(rodata) = skel.maps.rodata_data.as_deref_mut() {
        rodata.tt_config.cookies = cookies.into();
    }
    for hook in &HOOKS {
        let is_tried = places.contains(&hook.place);
        (hook.open)(&mut skel.progs).set_autoload(is_tried);
    }
    let skel = skel.load()?;
    // Some turn out not to work no sooner: processors without trampolines, perf events that are forbidden. What
    // forbids one forbids all of its kind, and detaching can take the kernel long.
    for kind in [Kind::Fexit, Kind::Fentry, Kind::Tp] {
        let mut hooks = places.iter().map(|place| place.hook());
        if let Some(hook) = hooks.find(|hook| hook.kind == kind) {
            drop((hook.loaded)(&skel.progs).attach()?);
        }
    }
    Ok(())
}
