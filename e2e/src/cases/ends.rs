//! The events of both ends of a connection, as a test expects them.

use serde_json::Value;

use crate::plugin::text;

/// An event as `TYPE NODE NAMESPACE/POD/CONTAINER COMM`.
pub fn line(event: &Value) -> String {
    let field = |name| text(event, name);
    format!(
        "{} {} {}/{}/{} {}",
        field("type"),
        field("node"),
        field("namespace"),
        field("pod"),
        field("container"),
        field("comm"),
    )
}

/// The events of one connection: of one end, if that is all that is selected.
pub struct End<'a> {
    node: &'a str,
    /// `NAMESPACE/POD/CONTAINER`.
    who: &'a str,
    comm: &'a str,
    opens: &'static str,
}

pub fn client<'a>(node: &'a str, who: &'a str) -> End<'a> {
    End {
        node,
        who,
        comm: "wget",
        opens: "connect",
    }
}

pub fn server<'a>(node: &'a str, who: &'a str) -> End<'a> {
    End {
        node,
        who,
        comm: "httpd",
        opens: "accept",
    }
}

/// The events are those of these ends, and each end's are of one connection. Which end closes first is not defined.
#[track_caller]
pub fn assert_ends(events: &[Value], ends: &[End<'_>]) {
    let mut lines: Vec<String> = events.iter().map(line).collect();
    lines.sort();
    let mut expected: Vec<String> = Vec::new();
    for End {
        node,
        who,
        comm,
        opens,
    } in ends
    {
        for kind in [*opens, "close"] {
            expected.push(format!("{kind} {node} {who} {comm}"));
        }
    }
    expected.sort();
    assert_eq!(lines, expected);
    for opened in events.iter().filter(|e| text(e, "type") != "close") {
        let same = events
            .iter()
            .filter(|e| e["id"] == opened["id"] && e["node"] == opened["node"]);
        assert_eq!(same.count(), 2, "{opened}");
    }
}
