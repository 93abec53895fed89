//! What can be tested without privileges: the help, the man page, and the agent's environment.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use clap::CommandFactory;
use clap_mangen::Man;
use tcptracer::host::Args;

const SECTIONS: &str = include_str!("../../../docs/tcptracer.8.in");

/// Name, synopsis and options come from the command line's definitions, the rest from `SECTIONS`.
fn man_page() -> String {
    let man = Man::new(Args::command())
        .section("8")
        .manual("System Administration")
        // Without a date the page is the same whenever it is made.
        .date("");
    let mut page = Vec::new();
    man.render_title(&mut page).expect("a title");
    man.render_name_section(&mut page).expect("a name");
    man.render_synopsis_section(&mut page).expect("a synopsis");
    man.render_description_section(&mut page)
        .expect("a description");
    man.render_options_section(&mut page).expect("options");
    page.extend(SECTIONS.as_bytes());
    String::from_utf8(page).expect("UTF-8")
}

#[test]
fn the_man_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tcptracer.8");
    let page = man_page();
    if env::var_os("UPDATE_MAN").is_some() {
        fs::write(&path, &page).expect("the man page can be written");
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == page,
        "docs/tcptracer.8 is out of date: make man"
    );
}

#[test]
fn the_man_page_names_every_option() {
    let page = man_page().replace('\\', "");
    for option in Args::command().get_arguments() {
        let long = option.get_long().expect("every option has a long form");
        assert!(page.contains(&format!("--{long}")), "--{long} is missing");
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    for (flag, start) in [
        ("-h", "Trace TCP"),
        ("--help", "Trace TCP"),
        ("-V", "tcptracer "),
    ] {
        let out = Command::new(env!("CARGO_BIN_EXE_tcptracer"))
            .arg(flag)
            .output()
            .expect("the tool runs");
        assert_eq!(out.status.code(), Some(0), "{flag}");
        assert!(out.stdout.starts_with(start.as_bytes()), "{flag}");
        assert!(out.stderr.is_empty(), "{flag}");
    }
}

/// The agent with these variables, up to the first thing that it needs of the node: there are no cgroups.
fn agent_with(variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_tcptracer-agent"))
        .env_clear()
        .env("TCPTRACER_LOG", "error")
        .env("TCPTRACER_GRPC_LISTEN", "0.0.0.0:0")
        .env("TCPTRACER_HTTP_LISTEN", "127.0.0.1:0")
        .env("TCPTRACER_CGROUPFS", "/gone")
        .envs(variables.iter().copied())
        .output()
        .expect("the agent runs");
    let stderr = String::from_utf8(out.stderr).expect("UTF-8");
    (out.status.code(), stderr)
}

#[test]
fn a_switch_is_turned_on_and_off_by_its_variable() {
    for on in ["true", "1", "yes", "on"] {
        let (code, stderr) = agent_with(&[("TCPTRACER_INSECURE", on)]);
        assert_eq!(code, Some(1), "{on}: {stderr}");
        assert!(stderr.contains("cgroups in /gone"), "{on}: {stderr}");
    }
    for off in ["false", "0", "no", "off", ""] {
        let (code, stderr) = agent_with(&[("TCPTRACER_INSECURE", off)]);
        assert_eq!(code, Some(2), "{off}: {stderr}");
        assert!(stderr.contains("--insecure"), "{off}: {stderr}");
    }
    let (code, stderr) = agent_with(&[("TCPTRACER_INSECURE", "perhaps")]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("invalid value 'perhaps'"), "{stderr}");
}

#[test]
fn an_empty_variable_counts_as_none() {
    let help = Command::new(env!("CARGO_BIN_EXE_tcptracer-agent"))
        .arg("--help")
        .output()
        .expect("the agent runs");
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    let variables: Vec<_> = help
        .split("[env: ")
        .skip(1)
        .map(|rest| {
            let (name, _) = rest.split_once('=').expect("a name and a value");
            (name, "")
        })
        // Without these it would begin to trace.
        .filter(|(name, _)| {
            ![
                "TCPTRACER_CGROUPFS",
                "TCPTRACER_GRPC_LISTEN",
                "TCPTRACER_HTTP_LISTEN",
            ]
            .contains(name)
        })
        .collect();
    assert!(variables.len() > 20, "{variables:?}");

    let (code, stderr) = agent_with(&[&variables[..], &[("TCPTRACER_INSECURE", "1")]].concat());
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("cgroups in /gone"), "{stderr}");
}
