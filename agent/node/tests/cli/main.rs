//! What can be tested of the agent without privileges: its environment.

use std::process::Command;

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
