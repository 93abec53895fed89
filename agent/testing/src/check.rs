//! What `check` reports, of the host tool and of the agent.

use std::process::Output;

use serde_json::Value;

/// The report, if it was asked for as JSON.
pub fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

pub fn hook<'r>(report: &'r Value, name: &str) -> &'r Value {
    let hooks = report["hooks"].as_array().expect("hooks");
    let found = hooks.iter().find(|hook| hook["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {report}"))
}

#[track_caller]
pub fn assert_exit_code(output: &Output, report: &Value) {
    let expected = match report["verdict"].as_str() {
        Some("complete") => 0,
        Some("degraded") => 3,
        Some("impossible") => 1,
        _ => panic!("no verdict: {report}"),
    };
    assert_eq!(output.status.code(), Some(expected), "{report}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

/// Whether a requirement is there, and the detail.
#[track_caller]
pub fn requirement<'r>(report: &'r Value, name: &str) -> (bool, &'r str) {
    let all = report["requirements"].as_array().expect("requirements");
    let found = all.iter().find(|r| r["name"] == name);
    let found = found.unwrap_or_else(|| panic!("no {name} in {report}"));
    let detail = found["detail"].as_str().expect("a detail");
    (found["present"] == true, detail)
}
