//! `kubectl tcptracer`: the TCP connections of pods as they open and close.
//!
//! Reaches the cluster ([`cluster`], [`proxy`]), finds the agents of the nodes that hold the pods ([`discover`],
//! [`agent_pod`], [`plan`]), goes to them ([`way`]), shows their streams in the order of time ([`watch`]; streams and order
//! are those of `tcptracer-client`) and writes rows or objects ([`render`]). `connections` and `status` ask once ([`ask`]).
//! What was lost or not heard is told on stderr ([`report`]) and by the exit code ([`exit`]). What ends a watch is in
//! [`signals`].

mod agent_pod;
mod args;
mod ask;
mod cluster;
mod complete;
mod connections;
mod discover;
mod event;
mod exit;
mod plan;
mod proxy;
mod render;
mod report;
mod request;
mod run;
mod signals;
mod status;
mod watch;
mod way;

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
