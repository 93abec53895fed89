//! `kubectl tcptracer`: the TCP connections of pods as they open and close.
//!
//! Reaches the cluster ([`cluster`], [`proxy`]), finds the agents of the nodes that hold the pods ([`discover`],
//! [`agent_pod`], [`plan`]), opens a stream to each ([`dial`], [`tls`], [`session`]), merges them in time order ([`watch`],
//! [`merge`]) and writes rows or objects ([`render`]). `connections` and `status` ask once ([`ask`]). What was lost or not
//! heard is told on stderr ([`report`]) and by the exit code ([`exit`]).

mod agent_pod;
mod args;
mod ask;
mod cluster;
mod complete;
mod connections;
mod dial;
mod discover;
mod event;
mod exit;
mod merge;
mod plan;
mod proxy;
mod render;
mod report;
mod request;
mod run;
mod session;
mod status;
mod text;
mod tls;
mod watch;

use std::process::ExitCode;

use crate::exit::{Code, code_of, explained, say};

fn main() -> ExitCode {
    let code = match run::main() {
        Ok(code) => code,
        Err(e) => {
            let code = code_of(&e);
            if code != Code::Complete {
                say(&explained(&e));
            }
            code
        }
    };
    code.into()
}
