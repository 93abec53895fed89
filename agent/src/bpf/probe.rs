/*!
What this kernel lets us do: facts, gathered by trying, and the pure decision that follows.

Nothing is concluded from the kernel's version. A program that is in doubt is loaded once for
trial; those that every kernel we support loads are not.
*/

use std::mem::MaybeUninit;
use std::path::Path;

use caps::{CapSet, Capability};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use thiserror::Error;

use super::skel::{OpenTcptracerSkel, TcptracerSkelBuilder};

/// What was found out. Facts only; the rules are in [`Plan::from_facts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// The state machine loads.
    pub state_machine: bool,
    /// `fexit/inet_csk_accept` loads.
    pub fexit_accept: bool,
    /// `iter/task_file` loads (5.11 for `bpf_sock_from_file`).
    pub snapshot: bool,
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
        "the kernel refuses the tracing program on inet_sock_set_state: 5.11 or later is needed, \
         without lockdown"
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
        if !facts.state_machine {
            return Err(Impossible::NoStateMachine);
        }
        if !facts.fexit_accept && !facts.syscall_tracepoints {
            return Err(Impossible::NoAcceptHook);
        }
        Ok(Self {
            fexit_accept: facts.fexit_accept,
            syscalls: facts.syscall_tracepoints,
            // fexit sees the accepts of io_uring as well.
            io_uring_accept: facts.io_uring_tracepoint && !facts.fexit_accept,
            snapshot: facts.snapshot,
        })
    }

    /// What the user should know is missing, one sentence each.
    pub fn shortcomings(&self) -> Vec<&'static str> {
        let mut all = Vec::new();
        if !self.syscalls {
            all.push(
                "threads already blocked in accept are not named: tracefs is not mounted \
                 (mount -t tracefs tracefs /sys/kernel/tracing)",
            );
        }
        if !self.fexit_accept && !self.io_uring_accept {
            all.push("accepts through io_uring are attributed to the listener's owner");
        }
        if !self.snapshot {
            all.push("connections opened before the start are not followed (needs 5.11)");
        }
        all
    }
}

impl Facts {
    /// Looks and tries. Costs some tens of milliseconds and leaves nothing behind.
    pub fn gather() -> Self {
        let cap = |c| {
            let has = |c| caps::has_cap(None, CapSet::Effective, c).unwrap_or(false);
            has(c) || has(Capability::CAP_SYS_ADMIN)
        };
        let cap_bpf = cap(Capability::CAP_BPF);
        let cap_perfmon = cap(Capability::CAP_PERFMON);
        let btf = Path::new("/sys/kernel/btf/vmlinux").exists();
        // Without these three every trial fails, and for a reason that is known.
        let can_try = cap_bpf && cap_perfmon && btf;

        Self {
            cap_bpf,
            cap_perfmon,
            btf,
            syscall_tracepoints: has_tracepoint("syscalls/sys_exit_accept4"),
            io_uring_tracepoint: has_tracepoint("io_uring/io_uring_complete"),
            state_machine: can_try && loads(|skel| skel.progs.tt_set_state.set_autoload(true)),
            fexit_accept: can_try && loads(|skel| skel.progs.tt_inet_csk_accept.set_autoload(true)),
            snapshot: can_try && loads(|skel| skel.progs.tt_seed_connections.set_autoload(true)),
        }
    }
}

fn has_tracepoint(name: &str) -> bool {
    ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
        .iter()
        .any(|root| {
            Path::new(root)
                .join("events")
                .join(name)
                .join("id")
                .exists()
        })
}

/// Turns every program off, so that the caller names those it wants.
pub(super) fn unload_all(skel: &mut OpenTcptracerSkel<'_>) {
    for mut prog in skel.open_object_mut().progs_mut() {
        prog.set_autoload(false);
    }
}

/// Whether the programs that `choose` turns on load.
fn loads(choose: impl FnOnce(&mut OpenTcptracerSkel<'_>)) -> bool {
    let mut object = MaybeUninit::uninit();
    let Ok(mut skel) = TcptracerSkelBuilder::default().open(&mut object) else {
        return false;
    };
    unload_all(&mut skel);
    let _ = skel.maps.cgroupmap.set_autocreate(false);
    let _ = skel.maps.mntnsmap.set_autocreate(false);
    // The trial needs the maps, not their room.
    let _ = skel.maps.conns.set_max_entries(1);
    let _ = skel.maps.events.set_max_entries(4096);
    choose(&mut skel);
    skel.load().is_ok()
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
        state_machine: true,
        fexit_accept: true,
        snapshot: true,
    };

    const FULL: Plan = Plan {
        fexit_accept: true,
        syscalls: true,
        io_uring_accept: false,
        snapshot: true,
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
            plan(|f| f.state_machine = false),
            Err(Impossible::NoStateMachine)
        );
        assert_eq!(
            plan(|f| (f.fexit_accept, f.syscall_tracepoints) = (false, false)),
            Err(Impossible::NoAcceptHook)
        );
    }

    #[test]
    fn without_fexit_the_system_calls_and_io_uring_are_hooked() {
        assert_eq!(
            plan(|f| f.fexit_accept = false),
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
        assert_eq!(plan.map(|p| p.shortcomings().len()), Ok(1));
    }

    #[test]
    fn without_any_io_uring_hook_it_is_told() {
        let plan = plan(|f| (f.fexit_accept, f.io_uring_tracepoint) = (false, false));
        assert_eq!(plan.map(|p| p.shortcomings().len()), Ok(1));
    }

    #[test]
    fn without_the_iterator_there_is_no_snapshot() {
        let plan = plan(|f| f.snapshot = false);
        assert_eq!(
            plan,
            Ok(Plan {
                snapshot: false,
                ..FULL
            })
        );
        assert_eq!(plan.map(|p| p.shortcomings().len()), Ok(1));
    }
}
