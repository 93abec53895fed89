//! What can be tested without privileges: the help and the man page.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use clap::CommandFactory;
use clap_mangen::Man;
use tcptracer::tool::Args;

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
