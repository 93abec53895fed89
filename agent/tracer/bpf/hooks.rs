/*!
The places in the kernel that we have programs for, each said once.

The groups of this table say what belongs together. Whether a group is used on this kernel follows from facts
([`super::plan`]). Trials, loading, attaching, accounting and `check` go through this table.
*/

use libbpf_rs::{OpenProgramMut, ProgramMut};
use thiserror::Error;

use super::config::Demand;
use super::skel::{OpenTcptracerProgs, TcptracerProgs};

/// How a program is tied to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A tracepoint, by its type.
    TpBtf,
    /// The entry of a function.
    Fentry,
    /// The return of a function.
    Fexit,
    /// A tracepoint, by its folder in tracefs.
    Tp,
    /// An iterator.
    Iter,
}

/// What the user should know is missing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shortcoming {
    /// Neither trampolines nor tracepoints of system calls.
    #[error(
        "connects refused before a SYN are not seen: tracefs is not mounted (mount -t tracefs tracefs \
         /sys/kernel/tracing), or the kernel lacks CONFIG_FTRACE_SYSCALLS"
    )]
    RefusedConnects,
    /// Neither a trampoline nor the io_uring tracepoint.
    #[error("accepts through io_uring are attributed to the listener's owner")]
    IoUringAccepts,
    /// No iterator.
    #[error("connections opened before the start are not followed")]
    OlderConnections,
}

/// What does the work of a place that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    /// Another place, if that can be used.
    Hook(Place),
    /// Something else.
    Text(&'static str),
}

/// A place in the kernel, our program for it, and what follows if it cannot be used.
pub struct Hook {
    /// Which.
    pub place: Place,
    /// What it is part of.
    pub group: Group,
    /// As the sections of the object name it.
    pub name: &'static str,
    /// How the program is tied to it.
    pub kind: Kind,
    /// The name of its tracepoint within its kind.
    pub target: &'static str,
    /// The first of these that can be used does its work.
    pub instead: &'static [Instead],
    /// With this one it is not needed.
    pub unless: Option<Place>,
    /// What the agent says if the kernel refuses it and no other place does its work, by which nothing is lost.
    pub refused: Option<&'static str>,
    /// What is lost without it and what is there instead.
    pub lost: Option<Shortcoming>,
    /// What it costs others, where that is much.
    pub costs: Option<&'static str>,
    /// The program before it is loaded.
    pub open: for<'p, 'o> fn(&'p mut OpenTcptracerProgs<'o>) -> &'p mut OpenProgramMut<'o>,
    /// The program.
    pub loaded: for<'p, 'o> fn(&'p TcptracerProgs<'o>) -> &'p ProgramMut<'o>,
}

macro_rules! section {
    (TpBtf $target:literal) => {
        concat!("tp_btf/", $target)
    };
    (Fentry $target:literal) => {
        concat!("fentry/", $target)
    };
    (Fexit $target:literal) => {
        concat!("fexit/", $target)
    };
    (Tp $target:literal) => {
        concat!("tp/", $target)
    };
    (Iter $target:literal) => {
        concat!("iter/", $target)
    };
}

macro_rules! hooks {
    ($(
        $(#[doc = $what:literal])+
        $group:ident {$(
            $(#[doc = $for:literal])+
            $place:ident: $kind:ident $target:literal => $program:ident $(, $field:ident: $value:expr)*;
        )+}
    )+) => {
        /// Places that are used together: all of them or none.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Group {
            $($(#[doc = $what])+ $group,)+
        }

        /// A place in the kernel that we have a program for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Place {
            $($($(#[doc = $for])+ $place,)+)+
        }

        /// All of them, the last to be attached first: whatever a program reports, those above it see.
        pub static HOOKS: [Hook; [$($(Place::$place),+),+].len()] = [$($(
            Hook {
                $($field: $value,)*
                ..Hook {
                    place: Place::$place,
                    group: Group::$group,
                    name: section!($kind $target),
                    kind: Kind::$kind,
                    target: $target,
                    instead: &[],
                    unless: None,
                    refused: None,
                    lost: None,
                    costs: None,
                    open: |progs| &mut progs.$program,
                    loaded: |progs| &progs.$program,
                }
            },
        )+)+];
    };
}

/// What tells an error that its process reads, and so clears, before we see it.
const INFERRED: Instead =
    Instead::Text("what the socket still shows of an error that was read too early");

/// The kernel takes the slow way through system calls while a tracepoint of one is attached.
const ALL_CALLS: Option<&str> =
    Some("while it is attached, every system call of the host takes longer");

hooks! {
    /// The state machine once more, for what its first programs were skipped for. It has to run after those.
    SecondCopies {
        /// Of the transitions.
        SetStateAgain: TpBtf "inet_sock_set_state" => tt_set_state_again,
            unless: Some(Place::TcpConnect);
        /// Of the end.
        DestroySockAgain: TpBtf "tcp_destroy_sock" => tt_destroy_sock_again,
            unless: Some(Place::TcpConnect);
    }
    /// Who connects, should the state machine have been skipped. All else later transitions make up for.
    Connecting {
        /// Before the SYN is sent.
        TcpConnect: Fentry "tcp_connect" => tt_tcp_connect,
            instead: &[Instead::Text("the state machine, attached a second time")];
    }
    /// What every connection takes.
    StateMachine {
        /// The transitions.
        SetState: TpBtf "inet_sock_set_state" => tt_set_state;
        /// The end that was missed.
        DestroySock: TpBtf "tcp_destroy_sock" => tt_destroy_sock;
        /// That a RST came.
        ReceiveReset: TpBtf "tcp_receive_reset" => tt_receive_reset;
    }
    /// The error that ends a connection, from who sets it.
    FatalErrors {
        /// As an argument.
        DoneWithError: Fentry "tcp_done_with_error" => tt_done_with_error,
            instead: &[Instead::Hook(Place::ErrorReport), INFERRED],
            refused: Some("the kernel refuses it; an error that its process reads too early is inferred");
    }
    /// The error that ends a connection, from who tells its process.
    AnnouncedErrors {
        /// Before the process is woken to read it.
        ErrorReport: Fentry "sock_def_error_report" => tt_error_report,
            unless: Some(Place::DoneWithError),
            instead: &[INFERRED];
    }
    /// Every accept, by whatever call.
    Grafts {
        /// Who accepted, and what.
        SockGraft: Fentry "security_sock_graft" => tt_sock_graft,
            instead: &[Instead::Text("the tracepoints of the system calls")],
            refused: Some("the kernel refuses it; the system calls' tracepoints do its work");
    }
    /// The system calls that accept. As long as one of their tracepoints is used, every system call costs more.
    Accepts {
        /// Who accepted.
        ExitAccept: Tp "syscalls/sys_exit_accept" => tt_exit_accept,
            unless: Some(Place::SockGraft),
            costs: ALL_CALLS;
        /// The same of the other system call.
        ExitAccept4: Tp "syscalls/sys_exit_accept4" => tt_exit_accept4,
            unless: Some(Place::SockGraft),
            costs: ALL_CALLS;
    }
    /// Connects that fail before a SYN is sent, those of io_uring too.
    Refusals {
        /// Since when TCP has tried.
        StreamConnect: Fentry "inet_stream_connect" => tt_stream_connect,
            instead: &[Instead::Hook(Place::EnterConnect)];
        /// That it failed.
        StreamConnected: Fexit "inet_stream_connect" => tt_stream_connected,
            instead: &[Instead::Hook(Place::ExitConnect)];
        /// That a security module has forbidden it.
        ConnectChecked: Fexit "security_socket_connect" => tt_connect_checked,
            instead: &[Instead::Hook(Place::ExitConnect)];
    }
    /// The system call that connects, for the same.
    Connects {
        /// What a connect is for.
        EnterConnect: Tp "syscalls/sys_enter_connect" => tt_enter_connect,
            unless: Some(Place::StreamConnected),
            lost: Some(Shortcoming::RefusedConnects),
            costs: ALL_CALLS;
        /// That it failed.
        ExitConnect: Tp "syscalls/sys_exit_connect" => tt_exit_connect,
            unless: Some(Place::StreamConnected),
            lost: Some(Shortcoming::RefusedConnects),
            costs: ALL_CALLS;
    }
    /// The accepts of io_uring.
    IoUring {
        /// Who accepted.
        IoUring: Tp "io_uring/io_uring_complete" => tt_io_uring_complete,
            unless: Some(Place::SockGraft),
            instead: &[Instead::Text("the owner of the listener")],
            lost: Some(Shortcoming::IoUringAccepts);
    }
    /// What is there at the start.
    Snapshot {
        /// Who listens.
        SeedListeners: Iter "task_file of listeners" => tt_seed_listeners,
            lost: Some(Shortcoming::OlderConnections);
        /// What is open, and who holds it.
        SeedConnections: Iter "task_file of connections" => tt_seed_connections,
            lost: Some(Shortcoming::OlderConnections);
    }
    /// What stays of connections while no hook is attached.
    Memory {
        /// What is open, and the sockets that were connected.
        Remember: Iter "task_file of memories" => tt_remember;
    }
    /// Cgroups that come and go.
    Cgroups {
        /// Those that are made.
        CgroupMkdir: TpBtf "cgroup_mkdir" => tt_cgroup_mkdir;
        /// Those that are removed.
        CgroupRmdir: TpBtf "cgroup_rmdir" => tt_cgroup_rmdir;
    }
}

impl Hook {
    /// Whether it takes a trampoline.
    pub(super) fn is_trampoline(&self) -> bool {
        matches!(self.kind, Kind::Fentry | Kind::Fexit)
    }
}

impl Place {
    /// Its entry in the table.
    pub fn hook(self) -> &'static Hook {
        &HOOKS[self as usize]
    }
}

impl Group {
    /// Its hooks, in the order of the table.
    pub fn hooks(self) -> impl Iterator<Item = &'static Hook> {
        HOOKS.iter().filter(move |hook| hook.group == self)
    }

    /// What they are attached for.
    pub(super) const fn demand(self) -> Demand {
        match self {
            Self::Cgroups => Demand::Nothing,
            Self::Refusals | Self::Connects => Demand::Failures,
            _ => Demand::Connections,
        }
    }

    /// What they are on, as a sentence names several.
    pub(super) fn targets(self) -> String {
        let targets: Vec<_> = self.hooks().map(|hook| hook.target).collect();
        let (last, others) = targets.split_last().expect("a group has hooks");
        format!("{} and {last}", others.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use libbpf_rs::skel::{OpenSkel, SkelBuilder};

    use super::*;
    use crate::bpf::skel::TcptracerSkelBuilder;

    #[test]
    fn the_table_has_each_program_of_the_object_once_and_at_its_place() {
        let mut object = MaybeUninit::uninit();
        let builder = TcptracerSkelBuilder::default();
        let mut skel = builder.open(&mut object).expect("an object");
        let mut tabled = Vec::new();
        for hook in &HOOKS {
            let program = (hook.open)(&mut skel.progs);
            let section = program.section().to_str().expect("UTF-8");
            // An iterator over the same may have several programs, which we tell apart.
            let name = hook.name.split(" of ").next();
            assert_eq!(name, Some(section), "{:?}", program.name());
            tabled.push(program.name());
        }
        let mut programs: Vec<_> = skel.open_object().progs().map(|p| p.name()).collect();
        tabled.sort_unstable();
        programs.sort_unstable();
        assert_eq!(tabled, programs);
    }
}
