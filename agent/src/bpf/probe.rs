/*!
What this kernel lets us do: facts, gathered by trying, and the pure decision that follows.

Nothing is concluded from the kernel's version. A program that is in doubt is loaded once for
trial; those that every kernel we support loads are not.
*/

use std::fmt;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use libbpf_rs::OpenProgramMut;
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::{Struct, Var};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use thiserror::Error;

use super::skel::{OpenTcptracerProgs, OpenTcptracerSkel, TcptracerSkelBuilder};

/// How the trial of a program went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// It can be used.
    Works,
    /// The kernel said no, with this error.
    Refused(String),
    /// No use trying: something that every program needs is missing.
    NotTried,
}

impl Trial {
    /// Whether the program can be used.
    pub fn works(&self) -> bool {
        *self == Self::Works
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => f.write_str("works"),
            Self::Refused(error) => write!(f, "refused: {error}"),
            Self::NotTried => f.write_str("not tried"),
        }
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
    /// tracefs is mounted and has the system call tracepoints.
    pub syscall_tracepoints: bool,
    /// tracefs has the io_uring tracepoint.
    pub io_uring_tracepoint: bool,
    /// The state machine, `tp_btf/inet_sock_set_state`, `tcp_destroy_sock` and `tcp_receive_reset`.
    pub state_machine: Trial,
    /// The same, asking for the cookies of sockets (5.12).
    pub cookies: Trial,
    /// `fexit/inet_csk_accept`, attached as well.
    pub fexit_accept: Trial,
    /// `iter/task_file`.
    pub snapshot: Trial,
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
        if !facts.state_machine.works() {
            return Err(Impossible::NoStateMachine);
        }
        let fexit_accept = facts.fexit_accept.works();
        if !fexit_accept && !facts.syscall_tracepoints {
            return Err(Impossible::NoAcceptHook);
        }
        Ok(Self {
            fexit_accept,
            syscalls: facts.syscall_tracepoints,
            // fexit sees the accepts of io_uring as well.
            io_uring_accept: facts.io_uring_tracepoint && !fexit_accept,
            snapshot: facts.snapshot.works(),
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
    /// Looks and tries. Costs some tens of milliseconds and leaves nothing behind.
    pub fn gather() -> Self {
        // Refused trials are expected and would fill the terminal.
        libbpf_rs::set_print(None);
        let cap = |c| {
            let has = |c| caps::has_cap(None, CapSet::Effective, c).unwrap_or(false);
            has(c) || has(Capability::CAP_SYS_ADMIN)
        };
        let cap_bpf = cap(Capability::CAP_BPF);
        let cap_perfmon = cap(Capability::CAP_PERFMON);
        let btf = Path::new("/sys/kernel/btf/vmlinux").exists();
        // Without these three every trial fails, and for a reason that is known.
        let can_try = cap_bpf && cap_perfmon && btf;
        let attempt = |cookies, choose: Choose| match can_try {
            true => trial(cookies, choose),
            false => Trial::NotTried,
        };
        let state_machine: Choose = |progs| {
            vec![
                &mut progs.tt_set_state,
                &mut progs.tt_destroy_sock,
                &mut progs.tt_receive_reset,
            ]
        };

        let cookies = attempt(true, state_machine);
        let has_cookies = cookies.works();
        Self {
            cap_bpf,
            cap_perfmon,
            btf,
            syscall_tracepoints: tracepoint("syscalls/sys_exit_accept4").is_some(),
            io_uring_tracepoint: tracepoint("io_uring/io_uring_complete").is_some(),
            state_machine: match has_cookies {
                true => Trial::Works,
                false => attempt(false, state_machine),
            },
            cookies,
            fexit_accept: attempt(has_cookies, |progs| vec![&mut progs.tt_inet_csk_accept]),
            snapshot: attempt(has_cookies, |progs| vec![&mut progs.tt_seed_connections]),
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

/// Names the programs of a trial.
type Choose = for<'p, 'o> fn(&'p mut OpenTcptracerProgs<'o>) -> Vec<&'p mut OpenProgramMut<'o>>;

/// Loads the programs that `choose` names, and attaches those that only then turn out not to work.
fn trial(cookies: bool, choose: Choose) -> Trial {
    match try_load(cookies, choose) {
        Ok(()) => Trial::Works,
        Err(e) => Trial::Refused(e.to_string()),
    }
}

fn try_load(cookies: bool, choose: Choose) -> libbpf_rs::Result<()> {
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
    for prog in choose(&mut skel.progs) {
        prog.set_autoload(true);
    }
    let skel = skel.load()?;
    // Processors without trampolines show it no sooner.
    if skel.progs.tt_inet_csk_accept.autoload() {
        drop(skel.progs.tt_inet_csk_accept.attach()?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Facts = Facts {
        cap_bpf: true,
        cap_perfmon: true,
        btf: true,
        syscall_tracepoints: true,
        io_uring_tracepoint: true,
        state_machine: Trial::Works,
        cookies: Trial::Works,
        fexit_accept: Trial::Works,
        snapshot: Trial::Works,
        preemptible_tracepoints: false,
    };

    const NO: Trial = Trial::NotTried;

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
        let mut facts = ALL;
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
        assert_eq!(
            plan(|f| f.state_machine = NO),
            Err(Impossible::NoStateMachine)
        );
        assert_eq!(
            plan(|f| (f.fexit_accept, f.syscall_tracepoints) = (NO, false)),
            Err(Impossible::NoAcceptHook)
        );
    }

    #[test]
    fn without_fexit_the_system_calls_and_io_uring_are_hooked() {
        assert_eq!(
            plan(|f| f.fexit_accept = NO),
            Ok(Plan {
                fexit_accept: false,
                io_uring_accept: true,
                ..FULL
            })
        );
    }

    #[test]
    fn without_tracefs_fexit_is_enough_but_blocked_accepts_are_told() {
        let plan = plan(|f| (f.syscall_tracepoints, f.io_uring_tracepoint) = (false, false));
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

    #[test]
    fn without_any_io_uring_hook_it_is_told() {
        let plan = plan(|f| (f.fexit_accept, f.io_uring_tracepoint) = (NO, false));
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
        let plan = plan(|f| f.cookies = NO);
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
        let plan = plan(|f| f.snapshot = NO);
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
