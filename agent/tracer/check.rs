/*!
`check`: what this host offers, which hooks are used or replaced, and what is lost by that.

The same facts and the same plan as tracing itself, so the report cannot promise anything else. Who needs more than
the host tool, as the agent does, adds its own requirements.
*/

use std::fmt::{self, Display};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use procfs::process::Process;
use rustix::system::uname;
use serde::Serialize;

use crate::bpf::{Facts, Group, HOOKS, Hook, Impossible, Instead, Plan, Trial};

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

/// For the host tool: looks, tries, and writes the report to stdout. The exit code is the verdict's.
pub fn run(args: &Args) -> Result<ExitCode> {
    let facts = Facts::gather(false);
    let mut requirements = of_every_tracer(&facts);
    requirements.extend(of_filter_maps());
    write(args, &facts, requirements)
}

/// Writes the report of what was found out.
pub fn write(args: &Args, facts: &Facts, requirements: Vec<Requirement>) -> Result<ExitCode> {
    let report = Report::new(facts, requirements);
    match args.output {
        Format::Text => print!("{report}"),
        Format::Json => println!("{}", serde_json::to_string(&report)?),
    }
    Ok(report.verdict.exit_code())
}

/// Where a file system of this type is mounted.
fn mounted(kind: &str) -> Option<PathBuf> {
    // Unlike in `mounts`, a space that some file system has in its options is at the end of a line, and harms no other.
    let mounts = Process::myself().ok()?.mountinfo().ok()?;
    let found = mounts.into_iter().find(|mount| mount.fs_type == kind)?;
    Some(found.mount_point)
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

/// What follows if something is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Nothing, or nothing that the plan does not say.
    Nothing,
    /// This is lost.
    Degrades(&'static str),
    /// It does not work at all.
    Prevents,
}

/// Something that is there or not, and where or why not.
#[derive(Debug, Serialize)]
pub struct Requirement {
    name: &'static str,
    present: bool,
    detail: String,
    #[serde(skip)]
    lack: Lack,
}

impl Requirement {
    /// Found, with where; or missing, with what to do.
    pub fn new(name: &'static str, found: Result<String, String>, lack: Lack) -> Self {
        Self {
            name,
            present: found.is_ok(),
            detail: found.unwrap_or_else(|missing| missing),
            lack,
        }
    }
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
struct Row {
    name: &'static str,
    state: Use,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instead: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    costs: Option<&'static str>,
}

impl Row {
    fn new(name: &'static str, trial: &Trial) -> Self {
        let (state, why) = match trial {
            Trial::Works => (Use::Used, None),
            Trial::NotTried => (Use::NotTried, None),
            Trial::Refused(error) => (Use::Refused, Some(error.clone())),
            Trial::Missing => {
                let why = "not in tracefs, or that cannot be read";
                (Use::Missing, Some(why.into()))
            }
        };
        Self {
            name,
            state,
            why,
            instead: None,
            lost: None,
            costs: None,
        }
    }

    fn of(hook: &Hook, facts: &Facts, plan: Option<&Plan>) -> Self {
        let mut row = Self::new(hook.name, facts.trial(hook.place));
        if !facts.needs(hook) {
            row.state = Use::NotNeeded;
            row.why = None;
        }
        let Some(plan) = plan else {
            return row;
        };
        match row.state {
            Use::NotNeeded => {}
            // Another of its group does not work.
            Use::Used if !plan.uses(hook.group) => row.state = Use::NotNeeded,
            Use::Used if hook.group == Group::IoUring => row.state = Use::OnDemand,
            Use::Used | Use::OnDemand => {}
            Use::Refused | Use::Missing | Use::NotTried => {
                row.instead = plan.instead(hook).map(|instead| match instead {
                    Instead::Text(text) => text,
                    Instead::Hook(place) => place.hook().name,
                });
            }
        }
        row.lost = plan.lost(hook).map(|lost| lost.to_string());
        row.costs = hook.costs.filter(|_| row.state == Use::Used);
        row
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
    hooks: Vec<Row>,
}

impl Report {
    fn new(facts: &Facts, requirements: Vec<Requirement>) -> Self {
        let plan = Plan::from_facts(facts);
        let name = uname();
        let hooks = hooks(facts, plan.as_ref().ok());
        let (verdict, summary) = judge(&plan, &requirements);
        Self {
            kernel: name.release().to_string_lossy().into(),
            architecture: name.machine().to_string_lossy().into(),
            verdict,
            summary,
            requirements,
            hooks,
        }
    }
}

fn judge(plan: &Result<Plan, Impossible>, requirements: &[Requirement]) -> (Verdict, String) {
    let missing = || requirements.iter().filter(|r| !r.present);
    let plan = match plan {
        Err(why) => return (Verdict::Impossible, why.to_string()),
        Ok(plan) => plan,
    };
    if let Some(needed) = missing().find(|r| r.lack == Lack::Prevents) {
        let why = format!("{}: {}", needed.name, needed.detail);
        return (Verdict::Impossible, why);
    }
    let mut lost: Vec<String> = Vec::new();
    let more = missing().filter_map(|r| match r.lack {
        Lack::Degrades(what) => Some(what.into()),
        Lack::Nothing | Lack::Prevents => None,
    });
    for what in plan
        .shortcomings()
        .iter()
        .map(ToString::to_string)
        .chain(more)
    {
        // The same may be lost for want of several things.
        if !lost.contains(&what) {
            lost.push(what);
        }
    }
    match lost.is_empty() {
        true => (Verdict::Complete, "every connection is traced".into()),
        false => (Verdict::Degraded, lost.join("; ")),
    }
}

/// What the kernel has to give to every tracer. The plan says what follows if it does not.
pub fn of_every_tracer(facts: &Facts) -> Vec<Requirement> {
    let of = |name, present, there: &str, missing: &str| {
        let found = match present {
            true => Ok(there.into()),
            false => Err(missing.into()),
        };
        Requirement::new(name, found, Lack::Nothing)
    };
    let tracefs = mounted("tracefs").map(|path| path.display().to_string());
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
        Requirement::new(
            "tracefs",
            tracefs
                .ok_or_else(|| "not mounted: mount -t tracefs tracefs /sys/kernel/tracing".into()),
            Lack::Nothing,
        ),
    ]
}

/// What only options of the host tool need.
fn of_filter_maps() -> [Requirement; 2] {
    let at = |name, path: Option<PathBuf>, missing: &str| {
        let found = path.map(|path| path.display().to_string());
        Requirement::new(name, found.ok_or_else(|| missing.into()), Lack::Nothing)
    };
    let mut cgroups = at(
        "cgroup v2",
        mounted("cgroup2"),
        "not mounted: --cgroupmap cannot tell cgroups apart",
    );
    if mounted("cgroup").is_some() && cgroups.present {
        cgroups.detail += ", beside v1: --cgroupmap sees only what is placed in v2";
    }
    [
        at(
            "bpffs",
            mounted("bpf"),
            "not mounted: --cgroupmap and --mntnsmap find no maps (mount -t bpf bpf /sys/fs/bpf)",
        ),
        cgroups,
    ]
}

fn hooks(facts: &Facts, plan: Option<&Plan>) -> Vec<Row> {
    let row = |hook| Row::of(hook, facts, plan);
    let mut rows: Vec<_> = Group::StateMachine.hooks().map(row).collect();
    rows.push(Row {
        state: match plan.is_some_and(|plan| plan.twice) {
            true => Use::Used,
            false => Use::NotNeeded,
        },
        ..Row::new("tp_btf hooks a second time", &Trial::Works)
    });
    let is_other = |hook: &&Hook| hook.group != Group::StateMachine && facts.ask_for(hook.group);
    rows.extend(HOOKS.iter().filter(is_other).map(row));
    let cookies = Row::new("helper bpf_get_socket_cookie", &facts.cookies);
    let ids = "ids of our own, which are not the kernel's socket cookies";
    rows.push(Row {
        instead: (facts.cookies != Trial::Works && plan.is_some()).then_some(ids),
        ..cookies
    });
    rows
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel {} on {}\n", self.kernel, self.architecture)?;
        for r in &self.requirements {
            let present = if r.present { "yes" } else { "no" };
            let line = format!("{:15} {present:4} {}", r.name, r.detail);
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
            if let Some(costs) = hook.costs {
                writeln!(f, "    costs: {costs}")?;
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
    use crate::bpf::{Place, Shortcoming};

    fn report(change: impl FnOnce(&mut Facts)) -> Report {
        report_with(Vec::new(), change)
    }

    fn report_with(more: Vec<Requirement>, change: impl FnOnce(&mut Facts)) -> Report {
        let mut facts = Facts::all_there();
        change(&mut facts);
        Report::new(&facts, more)
    }

    fn missing(lack: Lack) -> Requirement {
        Requirement::new("bpffs", Err("mount it".into()), lack)
    }

    fn hook<'r>(report: &'r Report, name: &str) -> &'r Row {
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
        let report = report(|f| {
            f.set(Place::SockGraft, Trial::Refused("no trampolines".into()));
        });
        assert_eq!(report.verdict, Verdict::Complete);
        let graft = hook(&report, "fentry/security_sock_graft");
        assert_eq!(graft.state, Use::Refused);
        assert_eq!(graft.why.as_deref(), Some("no trampolines"));
        assert!(graft.instead.is_some() && graft.lost.is_none());
        assert_eq!(
            hook(&report, "tp/io_uring/io_uring_complete").state,
            Use::OnDemand
        );
    }

    #[test]
    fn of_a_group_that_is_not_whole_nothing_is_used() {
        let report = report(|f| f.set(Place::ConnectChecked, Trial::Refused("unknown".into())));
        let state = |name| hook(&report, name).state;
        assert_eq!(state("fexit/security_socket_connect"), Use::Refused);
        assert_eq!(state("fexit/inet_stream_connect"), Use::NotNeeded);
        assert_eq!(state("tp/syscalls/sys_exit_connect"), Use::Used);
        assert_eq!(report.verdict, Verdict::Complete);
    }

    #[test]
    fn what_nothing_replaces_is_lost_and_degrades() {
        let report = report(|f| f.set(Place::SeedConnections, Trial::Refused("too old".into())));
        assert_eq!(report.verdict, Verdict::Degraded);
        assert_eq!(report.verdict.exit_code(), ExitCode::from(3));
        let lost = hook(&report, "iter/task_file of connections").lost.clone();
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
            f.set(Place::SockGraft, Trial::NotTried);
        });
        assert_eq!(report.verdict, Verdict::Impossible);
        assert_eq!(report.verdict.exit_code(), ExitCode::FAILURE);
        assert!(report.summary.contains("missing CAP_PERFMON"));
        assert!(report.hooks.iter().all(|h| h.instead.is_none()));
    }

    #[test]
    fn what_is_needed_and_missing_prevents_whatever_else_is_lost() {
        let lacks = vec![
            missing(Lack::Degrades("something")),
            missing(Lack::Prevents),
        ];
        let report = report_with(lacks, |f| f.set(Place::SeedListeners, Trial::Missing));
        assert_eq!(report.verdict, Verdict::Impossible);
        assert_eq!(report.summary, "bpffs: mount it");
    }

    #[test]
    fn what_is_lost_is_told_once_and_what_does_not_matter_is_not() {
        let lacks = [
            Lack::Nothing,
            Lack::Degrades("names"),
            Lack::Degrades("names"),
            Lack::Degrades("numbers"),
        ];
        let report = report_with(lacks.map(missing).into(), |_| {});
        assert_eq!(report.verdict, Verdict::Degraded);
        assert_eq!(report.summary, "names; numbers");
    }
}
