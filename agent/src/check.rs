/*!
`check`: what this host offers, which hooks are used or replaced, and what is lost by that.

The same facts and the same plan as tracing itself, so the report cannot promise anything else.
*/

use std::fmt::{self, Display};
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use rustix::system::uname;
use serde::Serialize;

use crate::bpf::{Facts, Plan, Shortcoming, Trial};

/// How the report is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// One JSON object
    Json,
}

/// Options of `check`.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Args {
    /// How to write the report
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// Looks, tries, and writes the report to stdout. The exit code is the verdict's.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let report = Report::new(Host::look(), &Facts::gather());
    match args.output {
        Format::Text => print!("{report}"),
        Format::Json => println!("{}", serde_json::to_string(&report)?),
    }
    Ok(report.verdict.exit_code())
}

/// What a host offers beside the facts that decide.
struct Host {
    kernel: String,
    architecture: String,
    tracefs: Option<PathBuf>,
    bpffs: Option<PathBuf>,
    cgroup2: Option<PathBuf>,
    cgroup1: bool,
}

impl Host {
    fn look() -> Self {
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let mounted = |kind: &str| {
            mounts.lines().find_map(|line| {
                let mut fields = line.split(' ').skip(1);
                let path = fields.next()?;
                (fields.next()? == kind).then(|| path.into())
            })
        };
        let name = uname();
        Self {
            kernel: name.release().to_string_lossy().into(),
            architecture: name.machine().to_string_lossy().into(),
            tracefs: mounted("tracefs"),
            bpffs: mounted("bpf"),
            cgroup2: mounted("cgroup2"),
            cgroup1: mounted("cgroup").is_some(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Complete,
    Degraded,
    Impossible,
}

impl Verdict {
    fn exit_code(self) -> ExitCode {
        match self {
            Self::Complete => ExitCode::SUCCESS,
            Self::Degraded => ExitCode::from(3),
            Self::Impossible => ExitCode::FAILURE,
        }
    }
}

/// Something that is there or not, and where or why not.
#[derive(Debug, Serialize)]
struct Requirement {
    name: &'static str,
    present: bool,
    detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Use {
    /// Attached as long as the tracer runs.
    Used,
    /// Attached once connections turn up that need it.
    OnDemand,
    /// Not attached, because another hook does better.
    NotNeeded,
    /// The kernel said no.
    Refused,
    /// The kernel does not have it, or hides it.
    Missing,
    /// It was not tried, because tracing is impossible anyhow.
    NotTried,
}

/// A place in the kernel that we use, or what takes its place.
#[derive(Debug, Serialize)]
struct Hook {
    name: &'static str,
    state: Use,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instead: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<String>,
}

impl Hook {
    fn new(name: &'static str, state: Use) -> Self {
        Self {
            name,
            state,
            why: None,
            instead: None,
            lost: None,
        }
    }

    fn tried(name: &'static str, trial: &Trial) -> Self {
        match trial {
            Trial::Works => Self::new(name, Use::Used),
            Trial::NotTried => Self::new(name, Use::NotTried),
            Trial::Refused(error) => Self {
                why: Some(error.clone()),
                ..Self::new(name, Use::Refused)
            },
        }
    }

    fn tracepoint(name: &'static str, present: bool) -> Self {
        match present {
            true => Self::new(name, Use::Used),
            false => Self {
                why: Some("not in tracefs, or that cannot be read".into()),
                ..Self::new(name, Use::Missing)
            },
        }
    }

    /// What does its work if it cannot, and we trace all the same.
    fn or(self, instead: &'static str, plan: Option<&Plan>) -> Self {
        let used = matches!(self.state, Use::Used | Use::OnDemand | Use::NotNeeded);
        match used || plan.is_none() {
            true => self,
            false => Self {
                instead: Some(instead),
                ..self
            },
        }
    }

    fn losing(self, shortcoming: Shortcoming, plan: Option<&Plan>) -> Self {
        let lost = plan.is_some_and(|plan| plan.shortcomings().contains(&shortcoming));
        Self {
            lost: lost.then(|| shortcoming.to_string()),
            ..self
        }
    }
}

/// The whole answer.
#[derive(Debug, Serialize)]
struct Report {
    kernel: String,
    architecture: String,
    verdict: Verdict,
    /// In a sentence: what is lost, or why nothing works.
    summary: String,
    requirements: Vec<Requirement>,
    hooks: Vec<Hook>,
}

impl Report {
    fn new(host: Host, facts: &Facts) -> Self {
        let plan = Plan::from_facts(facts);
        let requirements = requirements(&host, facts);
        let hooks = hooks(facts, plan.as_ref().ok());
        let (verdict, summary) = match &plan {
            Err(why) => (Verdict::Impossible, why.to_string()),
            Ok(plan) => match &plan.shortcomings()[..] {
                [] => (Verdict::Complete, "every connection is traced".into()),
                some => {
                    let some: Vec<_> = some.iter().map(ToString::to_string).collect();
                    (Verdict::Degraded, some.join("; "))
                }
            },
        };
        Self {
            kernel: host.kernel,
            architecture: host.architecture,
            verdict,
            summary,
            requirements,
            hooks,
        }
    }
}

fn requirements(host: &Host, facts: &Facts) -> Vec<Requirement> {
    let of = |name, present, there: &str, missing: &str| Requirement {
        name,
        present,
        detail: if present { there } else { missing }.into(),
    };
    let at = |name, path: &Option<PathBuf>, missing: &str| Requirement {
        name,
        present: path.is_some(),
        detail: match path {
            Some(path) => path.display().to_string(),
            None => missing.into(),
        },
    };
    let mut cgroups = at(
        "cgroup v2",
        &host.cgroup2,
        "not mounted: --cgroupmap cannot tell cgroups apart",
    );
    if host.cgroup1 && cgroups.present {
        cgroups.detail += ", beside v1: --cgroupmap sees only what is placed in v2";
    }
    vec![
        of(
            "BTF",
            facts.btf,
            "/sys/kernel/btf/vmlinux",
            "no /sys/kernel/btf/vmlinux: the kernel needs CONFIG_DEBUG_INFO_BTF=y, and /sys mounted",
        ),
        of("CAP_BPF", facts.cap_bpf, "", "run as root or add it"),
        of(
            "CAP_PERFMON",
            facts.cap_perfmon,
            "",
            "run as root or add it",
        ),
        at(
            "tracefs",
            &host.tracefs,
            "not mounted: mount -t tracefs tracefs /sys/kernel/tracing",
        ),
        at(
            "bpffs",
            &host.bpffs,
            "not mounted: --cgroupmap and --mntnsmap find no maps (mount -t bpf bpf /sys/fs/bpf)",
        ),
        cgroups,
    ]
}

fn hooks(facts: &Facts, plan: Option<&Plan>) -> Vec<Hook> {
    let syscalls = facts.syscall_tracepoints;
    let io_uring = match (facts.fexit_accept.works(), facts.io_uring_tracepoint) {
        (true, _) => Hook::new("tp/io_uring/io_uring_complete", Use::NotNeeded),
        (_, true) => Hook::new("tp/io_uring/io_uring_complete", Use::OnDemand),
        _ => Hook::tracepoint("tp/io_uring/io_uring_complete", false),
    };
    vec![
        Hook::tried("tp_btf/inet_sock_set_state", &facts.state_machine),
        Hook::tried("tp_btf/tcp_destroy_sock", &facts.state_machine),
        Hook::tried("tp_btf/tcp_receive_reset", &facts.state_machine),
        match facts.preemptible_tracepoints {
            true => Hook::new("tp_btf hooks a second time", Use::Used),
            false => Hook::new("tp_btf hooks a second time", Use::NotNeeded),
        },
        Hook::tried("fexit/inet_csk_accept", &facts.fexit_accept)
            .or("the tracepoints of the system calls", plan),
        Hook::tracepoint("tp/syscalls/sys_exit_accept", syscalls)
            .or("fexit/inet_csk_accept", plan)
            .losing(Shortcoming::BlockedAccepts, plan),
        Hook::tracepoint("tp/syscalls/sys_exit_accept4", syscalls)
            .or("fexit/inet_csk_accept", plan)
            .losing(Shortcoming::BlockedAccepts, plan),
        io_uring
            .or("the owner of the listener", plan)
            .losing(Shortcoming::IoUringAccepts, plan),
        Hook::tried("iter/task_file", &facts.snapshot).losing(Shortcoming::OlderConnections, plan),
        Hook::tried("helper bpf_get_socket_cookie", &facts.cookies).or(
            "ids of our own, which are not the kernel's socket cookies",
            plan,
        ),
    ]
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel {} on {}\n", self.kernel, self.architecture)?;
        for r in &self.requirements {
            let present = if r.present { "yes" } else { "no" };
            let line = format!("{:13} {present:4} {}", r.name, r.detail);
            writeln!(f, "{}", line.trim_end())?;
        }
        writeln!(f)?;
        for hook in &self.hooks {
            let state = match hook.state {
                Use::Used => "used",
                Use::OnDemand => "on demand",
                Use::NotNeeded => "not needed",
                Use::Refused => "refused",
                Use::Missing => "missing",
                Use::NotTried => "not tried",
            };
            write!(f, "{:30} {state}", hook.name)?;
            if let Some(why) = &hook.why {
                write!(f, ": {why}")?;
            }
            writeln!(f)?;
            if let Some(instead) = hook.instead {
                writeln!(f, "    instead: {instead}")?;
            }
            if let Some(lost) = &hook.lost {
                writeln!(f, "    lost: {lost}")?;
            }
        }
        let verdict = match self.verdict {
            Verdict::Complete => "complete",
            Verdict::Degraded => "degraded",
            Verdict::Impossible => "impossible",
        };
        writeln!(f, "\n{verdict}: {}", self.summary)
    }
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

    fn report(change: impl FnOnce(&mut Facts)) -> Report {
        let host = Host {
            kernel: "6.1.0".into(),
            architecture: "x86_64".into(),
            tracefs: Some("/sys/kernel/tracing".into()),
            bpffs: None,
            cgroup2: Some("/sys/fs/cgroup".into()),
            cgroup1: false,
        };
        let mut facts = ALL;
        change(&mut facts);
        Report::new(host, &facts)
    }

    fn hook<'r>(report: &'r Report, name: &str) -> &'r Hook {
        let found = report.hooks.iter().find(|h| h.name == name);
        found.expect("a hook of that name")
    }

    #[test]
    fn with_everything_nothing_is_replaced_or_lost() {
        let report = report(|_| {});
        assert_eq!(report.verdict, Verdict::Complete);
        assert_eq!(report.verdict.exit_code(), ExitCode::SUCCESS);
        for hook in &report.hooks {
            assert!(matches!(hook.state, Use::Used | Use::NotNeeded), "{hook:?}");
            assert!(hook.instead.is_none() && hook.lost.is_none(), "{hook:?}");
        }
    }

    #[test]
    fn a_refused_hook_that_another_replaces_loses_nothing() {
        let report = report(|f| f.fexit_accept = Trial::Refused("no trampolines".into()));
        assert_eq!(report.verdict, Verdict::Complete);
        let fexit = hook(&report, "fexit/inet_csk_accept");
        assert_eq!(fexit.state, Use::Refused);
        assert_eq!(fexit.why.as_deref(), Some("no trampolines"));
        assert!(fexit.instead.is_some() && fexit.lost.is_none());
        let io_uring = hook(&report, "tp/io_uring/io_uring_complete");
        assert_eq!(io_uring.state, Use::OnDemand);
    }

    #[test]
    fn what_nothing_replaces_is_lost_and_degrades() {
        let report = report(|f| f.snapshot = Trial::Refused("too old".into()));
        assert_eq!(report.verdict, Verdict::Degraded);
        assert_eq!(report.verdict.exit_code(), ExitCode::from(3));
        let lost = hook(&report, "iter/task_file").lost.clone();
        assert_eq!(lost, Some(Shortcoming::OlderConnections.to_string()));
        assert_eq!(lost, Some(report.summary.clone()));
        assert!(
            report
                .to_string()
                .contains("\ndegraded: connections opened before")
        );
    }

    #[test]
    fn without_a_capability_it_is_impossible() {
        let report = report(|f| {
            f.cap_perfmon = false;
            f.state_machine = Trial::NotTried;
            f.cookies = Trial::NotTried;
        });
        assert_eq!(report.verdict, Verdict::Impossible);
        assert_eq!(report.verdict.exit_code(), ExitCode::FAILURE);
        assert!(report.summary.contains("missing CAP_PERFMON"));
        assert!(report.hooks.iter().all(|h| h.instead.is_none()));
    }
}
