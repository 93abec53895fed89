/*!
What this kernel lets us do: facts, gathered by trying, and the pure decision that follows.

Nothing is concluded from the kernel's version. Every program that may be used is loaded once for trial, all at
once where nothing is refused, and one of each kind in doubt is attached.
*/

use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use libbpf_rs::OpenProgramMut;
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::{Struct, Var};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use thiserror::Error;

use super::skel::{OpenTcptracerProgs, OpenTcptracerSkel, TcptracerSkelBuilder};

/// How the trial of a program went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// It can be used.
    Works,
    /// The kernel said no, with this error.
    Refused(String),
    /// Its tracepoint is not in tracefs, or that cannot be read.
    Missing,
    /// No use trying: something that every program needs is missing.
    NotTried,
}

/// A place in the kernel, and whether our program for it can be used there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The place, as the sections of the object name it.
    pub hook: &'static str,
    /// How it went.
    pub trial: Trial,
}

impl Tried {
    /// Whether it can be used.
    pub fn works(&self) -> bool {
        self.trial == Trial::Works
    }
}

/// What was found out. Facts only; the rules are in [`Plan::from_facts`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Effective capabilities allow `bpf(2)`: `CAP_BPF` or `CAP_SYS_ADMIN`.
    pub cap_bpf: bool,
    /// Effective capabilities allow tracing programs: `CAP_PERFMON` or `CAP_SYS_ADMIN`.
    pub cap_perfmon: bool,
    /// The kernel describes its types: `/sys/kernel/btf/vmlinux`.
    pub btf: bool,
    /// What every connection takes.
    pub state_machine: [Tried; 3],
    /// The same, asking for the cookies of sockets (5.12).
    pub cookies: Tried,
    /// Sees every accept.
    pub fexit_accept: Tried,
    /// The exits of accept, and both ends of connect.
    pub syscalls: [Tried; 4],
    /// Sees the accepts of io_uring.
    pub io_uring: Tried,
    /// The iterators: over listeners, then over connections.
    pub snapshot: [Tried; 2],
    /// Cgroups made and removed; only looked at if that is to be told.
    pub cgroups: Option<[Tried; 2]>,
    /// Tasks can be preempted inside tracepoints (7.0).
    pub preemptible_tracepoints: bool,
}

/// Which programs to load and attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Attach `fexit/inet_csk_accept`.
    pub fexit_accept: bool,
    /// Attach `tp/syscalls/sys_exit_accept{,4}`, also beside fexit: only these see a thread that
    /// was already blocked in accept. If failed connects are wanted, those of connect as well.
    pub syscalls: bool,
    /// `tp/io_uring/io_uring_complete` can be attached when it is needed.
    pub io_uring_accept: bool,
    /// Seed the state with the connections that are open already.
    pub snapshot: bool,
    /// Connections are known by the cookies of their sockets; else by ids made up.
    pub cookies: bool,
    /// Attach the state machine twice: while a task is preempted in one of the programs, the kernel
    /// skips that for all others on the CPU.
    pub twice: bool,
}

/// Tracing cannot work here.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Impossible {
    /// `bpf(2)` would be refused.
    #[error("missing CAP_BPF: run as root or add CAP_BPF and CAP_PERFMON")]
    NoCapBpf,
    /// Tracing programs would be refused.
    #[error("missing CAP_PERFMON: run as root or add CAP_PERFMON beside CAP_BPF")]
    NoCapPerfmon,
    /// The kernel has no BTF.
    #[error(
        "the kernel does not describe its types: /sys/kernel/btf/vmlinux is missing \
         (it needs CONFIG_DEBUG_INFO_BTF=y, and /sys mounted)"
    )]
    NoBtf,
    /// The main program does not load.
    #[error(
        "the kernel refuses the tracing programs on inet_sock_set_state, tcp_destroy_sock and \
         tcp_receive_reset: 5.10 or later is needed, not locked down for confidentiality"
    )]
    NoStateMachine,
    /// No hook can tell who accepts.
    #[error(
        "nothing can tell who accepts: tracefs is not mounted or not readable \
         (mount -t tracefs tracefs /sys/kernel/tracing), or the kernel lacks CONFIG_FTRACE_SYSCALLS"
    )]
    NoAcceptHook,
    /// Cgroups are to be told of, and cannot be.
    #[error("the kernel refuses the tracing programs on cgroup_mkdir and cgroup_rmdir")]
    NoCgroupHooks,
}

impl Plan {
    /// The rules.
    pub fn from_facts(facts: &Facts) -> Result<Self, Impossible> {
        if !facts.cap_bpf {
            return Err(Impossible::NoCapBpf);
        }
        if !facts.cap_perfmon {
            return Err(Impossible::NoCapPerfmon);
        }
        if !facts.btf {
            return Err(Impossible::NoBtf);
        }
        if !all_work(&facts.state_machine) {
            return Err(Impossible::NoStateMachine);
        }
        let fexit_accept = facts.fexit_accept.works();
        let syscalls = all_work(&facts.syscalls);
        if !fexit_accept && !syscalls {
            return Err(Impossible::NoAcceptHook);
        }
        if facts.cgroups.as_ref().is_some_and(|c| !all_work(c)) {
            return Err(Impossible::NoCgroupHooks);
        }
        Ok(Self {
            fexit_accept,
            syscalls,
            // fexit sees the accepts of io_uring as well.
            io_uring_accept: facts.io_uring.works() && !fexit_accept,
            snapshot: all_work(&facts.snapshot),
            cookies: facts.cookies.works(),
            twice: facts.preemptible_tracepoints,
        })
    }

    /// What tracing does without.
    pub fn shortcomings(&self) -> Vec<Shortcoming> {
        [
            (self.syscalls, Shortcoming::BlockedAccepts),
            (
                self.fexit_accept || self.io_uring_accept,
                Shortcoming::IoUringAccepts,
            ),
            (self.snapshot, Shortcoming::OlderConnections),
        ]
        .into_iter()
        .filter_map(|(has, shortcoming)| (!has).then_some(shortcoming))
        .collect()
    }
}

fn all_work(hooks: &[Tried]) -> bool {
    hooks.iter().all(Tried::works)
}

/// What the user should know is missing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Shortcoming {
    /// No tracepoints of system calls.
    #[error(
        "threads already blocked in accept are not named, and connects refused before a SYN are not \
         seen: tracefs is not mounted (mount -t tracefs tracefs /sys/kernel/tracing), or the kernel \
         lacks CONFIG_FTRACE_SYSCALLS"
    )]
    BlockedAccepts,
    /// Neither fexit nor the io_uring tracepoint.
    #[error("accepts through io_uring are attributed to the listener's owner")]
    IoUringAccepts,
    /// No iterator.
    #[error("connections opened before the start are not followed")]
    OlderConnections,
}

impl Facts {
    /// Looks and tries; whether cgroups can be told of only if asked. Leaves nothing behind.
    pub fn gather(cgroups: bool) -> Self {
        // Refused trials are expected and would fill the terminal.
        libbpf_rs::set_print(None);
        let cap = |c| {
            let has = |c| caps::has_cap(None, CapSet::Effective, c).unwrap_or(false);
            has(c) || has(Capability::CAP_SYS_ADMIN)
        };
        let cap_bpf = cap(Capability::CAP_BPF);
        let cap_perfmon = cap(Capability::CAP_PERFMON);
        let btf = Path::new("/sys/kernel/btf/vmlinux").exists();
        let mut tester = Tester {
            // Without these three every trial fails, and for a reason that is known.
            can_try: cap_bpf && cap_perfmon && btf,
            cookies: true,
            all_work: false,
        };
        let state_machine: [Candidate; 3] = [
            ("tp_btf/inet_sock_set_state", |p| &mut p.tt_set_state),
            ("tp_btf/tcp_destroy_sock", |p| &mut p.tt_destroy_sock),
            ("tp_btf/tcp_receive_reset", |p| &mut p.tt_receive_reset),
        ];
        let tracepoints: [Candidate; 5] = [
            ("tp/syscalls/sys_exit_accept", |p| &mut p.tt_exit_accept),
            ("tp/syscalls/sys_exit_accept4", |p| &mut p.tt_exit_accept4),
            ("tp/syscalls/sys_enter_connect", |p| &mut p.tt_enter_connect),
            ("tp/syscalls/sys_exit_connect", |p| &mut p.tt_exit_connect),
            ("tp/io_uring/io_uring_complete", |p| {
                &mut p.tt_io_uring_complete
            }),
        ];
        let snapshot: [Candidate; 2] = [
            ("iter/task_file of listeners", |p| &mut p.tt_seed_listeners),
            ("iter/task_file of connections", |p| {
                &mut p.tt_seed_connections
            }),
        ];
        let cgroups: Option<[Candidate; 2]> = cgroups.then_some([
            ("tp_btf/cgroup_mkdir", |p| &mut p.tt_cgroup_mkdir),
            ("tp_btf/cgroup_rmdir", |p| &mut p.tt_cgroup_rmdir),
        ]);

        let mut all = [&state_machine[..], &tracepoints, &snapshot].concat();
        all.extend(cgroups.iter().flatten());
        let cookies = tester.try_all(&all, &state_machine);
        let [accept, accept4, enter_connect, exit_connect, io_uring] = tester.each(tracepoints);
        Self {
            cap_bpf,
            cap_perfmon,
            btf,
            state_machine: tester.each(state_machine),
            cookies: Tried {
                hook: "helper bpf_get_socket_cookie",
                trial: cookies,
            },
            fexit_accept: tester.alone(("fexit/inet_csk_accept", |p| &mut p.tt_inet_csk_accept)),
            syscalls: [accept, accept4, enter_connect, exit_connect],
            io_uring,
            snapshot: tester.each(snapshot),
            cgroups: cgroups.map(|cgroups| tester.each(cgroups)),
            preemptible_tracepoints: btf && has_preemptible_tracepoints(),
        }
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

/// Turns every program off, so that the caller names those it wants.
pub(super) fn unload_all(skel: &mut OpenTcptracerSkel<'_>) {
    for mut prog in skel.open_object_mut().progs_mut() {
        prog.set_autoload(false);
    }
}

/// A place in the kernel, and our program for it.
type Candidate = (
    &'static str,
    for<'p, 'o> fn(&'p mut OpenTcptracerProgs<'o>) -> &'p mut OpenProgramMut<'o>,
);

/// Loads programs for trial.
struct Tester {
    can_try: bool,
    /// They are to ask for the cookies of sockets.
    cookies: bool,
    /// All that nearly every kernel loads have been loaded at once, which takes less time than one by one.
    all_work: bool,
}

impl Tester {
    /// Tries all at once, without asking for cookies if the state machine may not; says whether it may.
    fn try_all(&mut self, all: &[Candidate], state_machine: &[Candidate]) -> Trial {
        self.all_work = self.together(all) == Trial::Works;
        if self.all_work {
            return Trial::Works;
        }
        let cookies = self.together(state_machine);
        if cookies != Trial::Works {
            self.cookies = false;
            self.all_work = self.together(all) == Trial::Works;
        }
        cookies
    }

    /// One by one only if need be, to tell which it is that does not work.
    fn each<const N: usize>(&self, candidates: [Candidate; N]) -> [Tried; N] {
        match self.all_work || self.together(&candidates) == Trial::Works {
            true => candidates.map(|(hook, _)| Tried {
                hook,
                trial: Trial::Works,
            }),
            false => candidates.map(|candidate| self.alone(candidate)),
        }
    }

    fn alone(&self, candidate: Candidate) -> Tried {
        Tried {
            hook: candidate.0,
            trial: self.together(&[candidate]),
        }
    }

    fn together(&self, candidates: &[Candidate]) -> Trial {
        let is_missing = |hook: &str| {
            let name = hook.strip_prefix("tp/");
            name.is_some_and(|name| tracepoint(name).is_none())
        };
        if !self.can_try {
            return Trial::NotTried;
        }
        if candidates.iter().any(|(hook, _)| is_missing(hook)) {
            return Trial::Missing;
        }
        match try_them(self.cookies, candidates) {
            Ok(()) => Trial::Works,
            Err(e) => Trial::Refused(e.to_string()),
        }
    }
}

fn try_them(cookies: bool, candidates: &[Candidate]) -> libbpf_rs::Result<()> {
    let mut object = MaybeUninit::uninit();
    let mut skel = TcptracerSkelBuilder::default().open(&mut object)?;
    unload_all(&mut skel);
    skel.maps.cgroupmap.set_autocreate(false)?;
    skel.maps.mntnsmap.set_autocreate(false)?;
    // The trial needs the maps, not their room.
    skel.maps.conns.set_max_entries(1)?;
    skel.maps.events.set_max_entries(4096)?;
    if let Some(rodata) = skel.maps.rodata_data.as_deref_mut() {
        rodata.tt_config.cookies = cookies.into();
    }
    for (_, choose) in candidates {
        choose(&mut skel.progs).set_autoload(true);
    }
    let skel = skel.load()?;
    // Some turn out not to work no sooner: processors without trampolines, perf events that are forbidden. What
    // forbids one forbids all of its kind, and detaching can take the kernel long.
    for kind in ["fexit/", "tp/"] {
        let mut loaded = skel.object().progs_mut().filter(|prog| {
            prog.autoload()
                && prog
                    .section()
                    .as_encoded_bytes()
                    .starts_with(kind.as_bytes())
        });
        loaded.next().map(|prog| prog.attach()).transpose()?;
    }
    Ok(())
}

#[cfg(test)]
impl Facts {
    /// Of a kernel that refuses nothing, where cgroups are not asked for.
    pub fn all_work() -> Self {
        let works = |hook| Tried {
            hook,
            trial: Trial::Works,
        };
        Self {
            cap_bpf: true,
            cap_perfmon: true,
            btf: true,
            state_machine: ["state", "destroy", "reset"].map(works),
            cookies: works("cookies"),
            fexit_accept: works("fexit"),
            syscalls: ["accept", "accept4", "enter_connect", "exit_connect"].map(works),
            io_uring: works("io_uring"),
            snapshot: ["listeners", "connections"].map(works),
            cgroups: None,
            preemptible_tracepoints: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: Trial = Trial::Refused(String::new());

    const FULL: Plan = Plan {
        fexit_accept: true,
        syscalls: true,
        io_uring_accept: false,
        snapshot: true,
        cookies: true,
        twice: false,
    };

    #[track_caller]
    fn plan(change: impl FnOnce(&mut Facts)) -> Result<Plan, Impossible> {
        let mut facts = Facts::all_work();
        change(&mut facts);
        Plan::from_facts(&facts)
    }

    #[test]
    fn all_facts_give_the_full_plan() {
        let plan = plan(|_| {}).expect("possible");
        assert_eq!(plan, FULL);
        assert!(plan.shortcomings().is_empty());
    }

    #[test]
    fn each_fact_that_tracing_cannot_do_without_is_named() {
        assert_eq!(plan(|f| f.cap_bpf = false), Err(Impossible::NoCapBpf));
        assert_eq!(
            plan(|f| f.cap_perfmon = false),
            Err(Impossible::NoCapPerfmon)
        );
        assert_eq!(plan(|f| f.btf = false), Err(Impossible::NoBtf));
        for which in 0..3 {
            assert_eq!(
                plan(|f| f.state_machine[which].trial = NO),
                Err(Impossible::NoStateMachine)
            );
        }
        assert_eq!(
            plan(|f| (f.fexit_accept.trial, f.syscalls[0].trial) = (NO, Trial::Missing)),
            Err(Impossible::NoAcceptHook)
        );
    }

    #[test]
    fn without_the_hooks_of_cgroups_those_cannot_be_told() {
        let tried = |trial| Tried { hook: "", trial };
        for (mkdir, rmdir, expected) in [
            (Trial::Works, Trial::Works, Ok(FULL)),
            (NO, Trial::Works, Err(Impossible::NoCgroupHooks)),
            (Trial::Works, NO, Err(Impossible::NoCgroupHooks)),
        ] {
            let cgroups = Some([tried(mkdir), tried(rmdir)]);
            assert_eq!(plan(|f| f.cgroups = cgroups), expected);
        }
    }

    #[test]
    fn without_fexit_the_system_calls_and_io_uring_are_hooked() {
        assert_eq!(
            plan(|f| f.fexit_accept.trial = NO),
            Ok(Plan {
                fexit_accept: false,
                io_uring_accept: true,
                ..FULL
            })
        );
    }

    #[test]
    fn without_one_of_the_system_calls_fexit_is_enough_but_blocked_accepts_are_told() {
        for which in 0..4 {
            let plan = plan(|f| f.syscalls[which].trial = Trial::Missing);
            assert_eq!(
                plan,
                Ok(Plan {
                    syscalls: false,
                    ..FULL
                })
            );
            assert_eq!(
                plan.map(|p| p.shortcomings()),
                Ok(vec![Shortcoming::BlockedAccepts])
            );
        }
    }

    #[test]
    fn without_any_io_uring_hook_it_is_told() {
        let plan = plan(|f| (f.fexit_accept.trial, f.io_uring.trial) = (NO, NO));
        assert_eq!(
            plan.map(|p| p.shortcomings()),
            Ok(vec![Shortcoming::IoUringAccepts])
        );
    }

    #[test]
    fn where_tracepoints_are_preempted_the_state_machine_is_attached_twice() {
        assert_eq!(
            plan(|f| f.preemptible_tracepoints = true),
            Ok(Plan {
                twice: true,
                ..FULL
            })
        );
    }

    #[test]
    fn without_cookies_nothing_is_lost() {
        let plan = plan(|f| f.cookies.trial = NO);
        assert_eq!(
            plan,
            Ok(Plan {
                cookies: false,
                ..FULL
            })
        );
        assert_eq!(plan.map(|p| p.shortcomings()), Ok(vec![]));
    }

    #[test]
    fn without_the_iterator_there_is_no_snapshot() {
        for which in 0..2 {
            let plan = plan(|f| f.snapshot[which].trial = NO);
            assert_eq!(
                plan,
                Ok(Plan {
                    snapshot: false,
                    ..FULL
                })
            );
            assert_eq!(
                plan.map(|p| p.shortcomings()),
                Ok(vec![Shortcoming::OlderConnections])
            );
        }
    }
}
