/*!
From facts about this kernel to what is loaded and attached. Pure.
*/

use std::collections::BTreeSet;

use thiserror::Error;

use super::config::Config;
use super::hooks::{Group, HOOKS, Hook, Instead, Place, Shortcoming};

/// How the trial of a program went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// It can be used.
    Works,
    /// The kernel said no, with this error.
    Refused(String),
    /// Its tracepoint is not in tracefs, or that cannot be read.
    Missing,
    /// No use trying: something that every program needs is missing, or it would not be used.
    NotTried,
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
    /// The programs of the state machine may ask for the cookies of sockets (5.12).
    pub cookies: Trial,
    /// Cgroups that come and go are to be reported.
    pub cgroups: bool,
    /// Tasks can be preempted inside tracepoints (7.0).
    pub preemptible_tracepoints: bool,
    /// In the order of the table.
    pub(super) trials: [Trial; HOOKS.len()],
}

impl Facts {
    /// Nothing is there, and nothing was tried.
    pub(super) fn none() -> Self {
        Self {
            cap_bpf: false,
            cap_perfmon: false,
            btf: false,
            cookies: Trial::NotTried,
            cgroups: false,
            preemptible_tracepoints: false,
            trials: [const { Trial::NotTried }; HOOKS.len()],
        }
    }

    /// How the trial of a place's program went.
    pub fn trial(&self, place: Place) -> &Trial {
        &self.trials[place as usize]
    }

    /// Whether it can be used.
    pub fn works(&self, place: Place) -> bool {
        *self.trial(place) == Trial::Works
    }

    /// Whether all of a group can be used.
    fn all_work(&self, group: Group) -> bool {
        group.hooks().all(|hook| self.works(hook.place))
    }

    /// Whether a hook's work is not done by a better one, all of whose group can be used.
    pub(crate) fn needs(&self, hook: &Hook) -> bool {
        !hook
            .unless
            .is_some_and(|better| self.all_work(better.hook().group))
    }

    /// Whether a group is tried, and told of. The second copies can be used where the first can.
    pub(crate) fn ask_for(&self, group: Group) -> bool {
        match group {
            Group::SecondCopies => false,
            Group::Connecting => self.preemptible_tracepoints,
            Group::Cgroups => self.cgroups,
            _ => true,
        }
    }

    /// That is how its trial went.
    pub(crate) fn set(&mut self, place: Place, trial: Trial) {
        self.trials[place as usize] = trial;
    }
}

/// What to do with a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// Not to load it.
    Never,
    /// To attach it as long as what it is for is asked for.
    Asked,
    /// To load it, and attach it once it is needed.
    Needed,
    /// To run it now and then.
    Run,
}

/// Which programs to load and attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Attach `fentry/security_sock_graft`.
    pub grafts: bool,
    /// Attach `fentry/tcp_done_with_error`.
    pub fatal_errors: bool,
    /// Attach `fentry/sock_def_error_report`. With neither, an error that its process reads too early is inferred.
    pub announced_errors: bool,
    /// Attach `tp/syscalls/sys_exit_accept{,4}` because `grafts` cannot be used.
    pub accept_calls: bool,
    /// `tp/io_uring/io_uring_complete` can be attached when it is needed beside these.
    pub io_uring_accept: bool,
    /// Attach the trampolines of connects if failed connects are wanted.
    pub refusals: bool,
    /// Attach `tp/syscalls/sys_{enter,exit}_connect` instead, because `refusals` cannot be used.
    pub connect_calls: bool,
    /// Seed the state with the connections that are open already.
    pub snapshot: bool,
    /// Have sockets remember their connections while nothing is attached.
    pub memory: bool,
    /// Connections are known by the cookies of their sockets; else by ids made up.
    pub cookies: bool,
    /// Attach `fentry/tcp_connect`: while a task is preempted in a program, the kernel skips that for all others on the CPU.
    pub connecting: bool,
    /// For the same reason attach the state machine twice, because `connecting` cannot be used.
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
        "the kernel refuses the tracing programs on {}: 5.10 or later is needed, not locked down for confidentiality",
        Group::StateMachine.targets()
    )]
    NoStateMachine,
    /// No hook can tell who accepts.
    #[error(
        "nothing can tell who accepts: tracefs is not mounted or not readable \
         (mount -t tracefs tracefs /sys/kernel/tracing), or the kernel lacks CONFIG_FTRACE_SYSCALLS"
    )]
    NoAcceptHook,
    /// Cgroups are to be told of, and cannot be.
    #[error("the kernel refuses the tracing programs on {}", Group::Cgroups.targets())]
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
        if !facts.all_work(Group::StateMachine) {
            return Err(Impossible::NoStateMachine);
        }
        let grafts = facts.all_work(Group::Grafts);
        let accept_calls = !grafts && facts.all_work(Group::Accepts);
        if !grafts && !accept_calls {
            return Err(Impossible::NoAcceptHook);
        }
        if facts.cgroups && !facts.all_work(Group::Cgroups) {
            return Err(Impossible::NoCgroupHooks);
        }
        let fatal_errors = facts.all_work(Group::FatalErrors);
        let refusals = facts.all_work(Group::Refusals);
        let cookies = facts.cookies == Trial::Works;
        let connecting = facts.preemptible_tracepoints && facts.all_work(Group::Connecting);
        Ok(Self {
            grafts,
            fatal_errors,
            announced_errors: facts.all_work(Group::AnnouncedErrors) && !fatal_errors,
            accept_calls,
            io_uring_accept: !grafts && facts.all_work(Group::IoUring),
            refusals,
            connect_calls: !refusals && facts.all_work(Group::Connects),
            snapshot: facts.all_work(Group::Snapshot),
            memory: cookies && facts.all_work(Group::Memory),
            cookies,
            connecting,
            twice: facts.preemptible_tracepoints && !connecting,
        })
    }

    /// Whether a task can be preempted inside a program, which the kernel then skips for all others on the CPU.
    pub fn is_preempted(&self) -> bool {
        self.connecting || self.twice
    }

    /// Whether a group can be used here. The configuration says whether it is.
    pub(crate) fn uses(&self, group: Group) -> bool {
        match group {
            Group::StateMachine | Group::Cgroups => true,
            Group::SecondCopies => self.twice,
            Group::Connecting => self.connecting,
            Group::FatalErrors => self.fatal_errors,
            Group::AnnouncedErrors => self.announced_errors,
            Group::Grafts => self.grafts,
            Group::Accepts => self.accept_calls,
            Group::Refusals => self.refusals,
            Group::Connects => self.connect_calls,
            Group::IoUring => self.io_uring_accept,
            Group::Snapshot => self.snapshot,
            Group::Memory => self.memory,
        }
    }

    fn uses_place(&self, place: Place) -> bool {
        self.uses(place.hook().group)
    }

    /// What to do with the programs of a group for this configuration.
    pub(super) fn when(&self, group: Group, config: &Config) -> When {
        match group {
            _ if !self.uses(group) => When::Never,
            Group::Refusals | Group::Connects if !config.failed => When::Never,
            Group::Cgroups if config.cgroups.is_none() => When::Never,
            Group::IoUring => When::Needed,
            Group::Memory if config.on_demand.is_none() => When::Never,
            Group::Snapshot | Group::Memory => When::Run,
            _ => When::Asked,
        }
    }

    /// What does the work of a hook that is not used.
    pub fn instead(&self, hook: &Hook) -> Option<Instead> {
        let can_be_used = |instead: &Instead| match *instead {
            Instead::Hook(place) => self.uses_place(place),
            Instead::Text(_) => true,
        };
        hook.instead.iter().copied().find(can_be_used)
    }

    /// The names of hooks that the kernel refuses, with no other hook instead, and why that is no loss.
    pub fn refused(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        HOOKS
            .iter()
            .rev()
            .filter(|hook| !self.uses(hook.group))
            .filter(|hook| matches!(self.instead(hook), Some(Instead::Text(_))))
            .filter_map(|hook| Some((hook.name, hook.refused?)))
    }

    /// What is lost because this hook is not used, nor the one without which it is needed.
    pub fn lost(&self, hook: &Hook) -> Option<Shortcoming> {
        let has =
            self.uses(hook.group) || hook.unless.is_some_and(|better| self.uses_place(better));
        hook.lost.filter(|_| !has)
    }

    /// What tracing does without.
    pub fn shortcomings(&self) -> Vec<Shortcoming> {
        let lost: BTreeSet<_> = HOOKS.iter().filter_map(|hook| self.lost(hook)).collect();
        lost.into_iter().collect()
    }
}

#[cfg(test)]
impl Facts {
    /// Of a kernel that refuses nothing, where cgroups are not asked for.
    pub fn all_there() -> Self {
        Self {
            cap_bpf: true,
            cap_perfmon: true,
            btf: true,
            cookies: Trial::Works,
            trials: [const { Trial::Works }; HOOKS.len()],
            ..Self::none()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: Trial = Trial::Refused(String::new());

    const FULL: Plan = Plan {
        grafts: true,
        fatal_errors: true,
        announced_errors: false,
        accept_calls: false,
        io_uring_accept: false,
        refusals: true,
        connect_calls: false,
        snapshot: true,
        memory: true,
        cookies: true,
        connecting: false,
        twice: false,
    };

    #[track_caller]
    fn plan(change: impl FnOnce(&mut Facts)) -> Result<Plan, Impossible> {
        let mut facts = Facts::all_there();
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
        for hook in Group::StateMachine.hooks() {
            assert_eq!(
                plan(|f| f.set(hook.place, NO)),
                Err(Impossible::NoStateMachine)
            );
        }
        assert_eq!(
            plan(|f| {
                f.set(Place::SockGraft, NO);
                f.set(Place::ExitAccept, Trial::Missing);
            }),
            Err(Impossible::NoAcceptHook)
        );
    }

    #[test]
    fn without_the_hooks_of_cgroups_those_cannot_be_told() {
        for (mkdir, rmdir, expected) in [
            (Trial::Works, Trial::Works, Ok(FULL)),
            (NO, Trial::Works, Err(Impossible::NoCgroupHooks)),
            (Trial::Works, NO, Err(Impossible::NoCgroupHooks)),
        ] {
            let plan = plan(|f| {
                f.cgroups = true;
                f.set(Place::CgroupMkdir, mkdir);
                f.set(Place::CgroupRmdir, rmdir);
            });
            assert_eq!(plan, expected);
        }
    }

    #[test]
    fn without_the_trampoline_the_system_calls_and_io_uring_are_hooked() {
        assert_eq!(
            plan(|f| f.set(Place::SockGraft, NO)),
            Ok(Plan {
                grafts: false,
                accept_calls: true,
                io_uring_accept: true,
                ..FULL
            })
        );
    }

    #[test]
    fn errors_come_from_the_better_hook_and_without_any_nothing_is_lacking() {
        for (fatal, announced, fatal_errors, announced_errors) in [
            (Trial::Works, Trial::Works, true, false),
            (NO, Trial::Works, false, true),
            (NO, NO, false, false),
        ] {
            let plan = plan(|f| {
                f.set(Place::DoneWithError, fatal);
                f.set(Place::ErrorReport, announced);
            });
            let expected = Plan {
                fatal_errors,
                announced_errors,
                ..FULL
            };
            assert_eq!(plan, Ok(expected));
            assert_eq!(plan.map(|p| p.shortcomings()), Ok(vec![]));
        }
    }

    #[test]
    fn a_refused_hook_is_told_with_why_that_is_no_loss_unless_another_does_its_work() {
        let refused = |places: &[Place]| {
            let plan = plan(|f| places.iter().for_each(|place| f.set(*place, NO)));
            let plan = plan.expect("possible");
            plan.refused().map(|(name, _)| name).collect::<Vec<_>>()
        };
        use Place::{DoneWithError, ErrorReport, ExitAccept, IoUring, SockGraft};
        assert!(refused(&[]).is_empty());
        assert!(refused(&[DoneWithError, ExitAccept]).is_empty());
        assert_eq!(
            refused(&[DoneWithError, ErrorReport, SockGraft, IoUring]),
            [SockGraft, DoneWithError].map(|place| place.hook().name)
        );
    }

    #[test]
    fn beside_trampolines_system_calls_are_not_hooked() {
        for hook in Group::Accepts.hooks().chain(Group::Connects.hooks()) {
            assert_eq!(plan(|f| f.set(hook.place, Trial::Missing)), Ok(FULL));
        }
    }

    #[test]
    fn without_the_trampolines_connects_that_are_refused_take_system_calls() {
        for hook in Group::Refusals.hooks() {
            let called = plan(|f| f.set(hook.place, NO));
            let expected = Plan {
                refusals: false,
                connect_calls: true,
                ..FULL
            };
            assert_eq!(called, Ok(expected));
            assert_eq!(called.map(|p| p.shortcomings()), Ok(vec![]));
            let plan = plan(|f| {
                f.set(hook.place, NO);
                f.set(Place::EnterConnect, Trial::Missing);
            });
            let expected = Plan {
                refusals: false,
                connect_calls: false,
                ..FULL
            };
            assert_eq!(plan, Ok(expected));
            assert_eq!(
                plan.map(|p| p.shortcomings()),
                Ok(vec![Shortcoming::RefusedConnects])
            );
        }
    }

    #[test]
    fn a_hook_is_needed_unless_all_of_the_better_group_works() {
        let mut facts = Facts::none();
        for place in [Place::StreamConnect, Place::StreamConnected] {
            facts.set(place, Trial::Works);
            assert!(facts.needs(Place::EnterConnect.hook()), "{place:?}");
        }
        facts.set(Place::ConnectChecked, Trial::Works);
        assert!(!facts.needs(Place::EnterConnect.hook()));
        assert!(facts.needs(Place::ExitAccept.hook()));
        assert!(facts.needs(Place::SetState.hook()));
    }

    #[test]
    fn without_any_io_uring_hook_it_is_told() {
        let plan = plan(|f| {
            f.set(Place::SockGraft, NO);
            f.set(Place::IoUring, NO);
        });
        assert_eq!(
            plan.map(|p| p.shortcomings()),
            Ok(vec![Shortcoming::IoUringAccepts])
        );
    }

    #[test]
    fn where_tracepoints_are_preempted_connects_are_seen_by_another_hook() {
        for (trial, connecting) in [(Trial::Works, true), (NO, false)] {
            let plan = plan(|f| {
                f.preemptible_tracepoints = true;
                f.set(Place::TcpConnect, trial.clone());
            });
            assert_eq!(
                plan,
                Ok(Plan {
                    connecting,
                    twice: !connecting,
                    ..FULL
                })
            );
        }
    }

    #[test]
    fn without_cookies_nothing_is_lost() {
        let plan = plan(|f| f.cookies = NO);
        assert_eq!(
            plan,
            Ok(Plan {
                cookies: false,
                memory: false,
                ..FULL
            })
        );
        assert_eq!(plan.map(|p| p.shortcomings()), Ok(vec![]));
    }

    #[test]
    fn without_the_iterator_there_is_no_snapshot() {
        for hook in Group::Snapshot.hooks() {
            let plan = plan(|f| f.set(hook.place, NO));
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
