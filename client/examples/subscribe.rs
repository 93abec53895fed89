//! Subscribes to agents, and prints what closes and why, in the order of time: a subscriber at its smallest.
//!
//! ```text
//! kubectl -n tcptracer port-forward daemonset/tcptracer-agent 50051
//! cargo run -p tcptracer-client --example subscribe -- 127.0.0.1:50051 shop
//! ```
//!
//! Several agents are separated by commas; namespaces follow, all if there are none. Agents that speak TLS take
//! `TLS_CA=ca.crt`, with `TLS_CERT=tls.crt TLS_KEY=tls.key` if they want a certificate, and
//! `TLS_NAME=tcptracer-agent.tcptracer.svc` if they are not called what is dialled.
//!
//! When a stream breaks, it is resumed where it was, and what the agent does not remember any more is told as lost.
//! Ctrl-C ends the streams in order: what had happened by then is still printed.

use std::env;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Error, Result};
use tcptracer_client::address::Address;
use tcptracer_client::dial::{Dialer, Direct};
use tcptracer_client::merge::{Limits, Merge};
use tcptracer_client::request::{Filters, Span};
use tcptracer_client::session::{self, Heard, Meaning, News, Question};
use tcptracer_client::time::timestamp;
use tcptracer_client::tls::Tls;
use tcptracer_event::printable;
use tcptracer_proto::EventBytes;
use tcptracer_proto::v1::{Event, EventType, Filter};
use tokio::signal::ctrl_c;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// An event, and the node that it is of.
type Named = (String, Event);

/// How long an event waits for earlier ones of other agents, and how many wait.
const LIMITS: Limits = Limits {
    items: 10_000,
    delay: Duration::from_millis(250),
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let agents = arguments
        .next()
        .context("usage: subscribe HOST:PORT[,HOST:PORT…] [NAMESPACE…]")?;
    let agents: Vec<Address> = agents
        .split(',')
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let question = Question {
        dialer: Dialer {
            way: Direct { tls: tls()? },
            timeout: Some(Duration::from_secs(10)),
        },
        filters: Filters {
            allow: vec![Filter {
                namespaces: arguments.collect(),
                types: vec![EventType::Close.into()],
                ..Filter::default()
            }],
            deny: Vec::new(),
        },
        span: Span {
            past: None,
            follow: true,
        },
    };

    // A bounded queue: who is too slow loses events, and is told how many.
    let (to, mut heard) = mpsc::channel(64);
    let end = CancellationToken::new();
    let mut merge = Merge::new(LIMITS);
    for (source, address) in (0..).zip(agents) {
        // An agent at an address stays there; those of a cluster come and go.
        let (_, target) = watch::channel(address);
        let with_node =
            |node: &str, event: EventBytes<'_>| Ok((node.to_string(), event.message()?));
        tokio::spawn(session::run(
            source,
            question.clone(),
            target,
            with_node,
            to.clone(),
            end.clone(),
        ));
    }
    drop(to);

    loop {
        let deadline = merge.deadline();
        tokio::select! {
            heard = heard.recv() => match heard {
                Some(heard) => take(heard, &mut merge),
                // All sessions are over.
                None => break,
            },
            // What waits has waited long enough.
            () = until(deadline) => {}
            _ = ctrl_c(), if !end.is_cancelled() => end.cancel(),
        }
        while let Some(event) = merge.pop(Instant::now()) {
            print(event);
        }
    }
    while let Some(event) = merge.pop_anyway() {
        print(event);
    }
    Ok(())
}

fn take(Heard { source, news }: Heard<Named>, merge: &mut Merge<Named>) {
    match news {
        News::Connected { node, restarted } => {
            // From now on, events of others wait for what it may have from before.
            merge.add(source);
            if restarted {
                eprintln!("{node}: its agent has started again, and knows nothing of before");
            }
        }
        News::Events(events) => {
            let now = Instant::now();
            for (node, event) in events {
                let time = event.time.and_then(timestamp);
                merge.push(source, time, (node, event), now);
            }
        }
        News::Lost { node, lost } => {
            eprintln!("{node}: {} lost ({:?})", lost.count, lost.source());
        }
        News::Paused { node, meaning, .. } => {
            // Otherwise the stream only begins where tracing does.
            if meaning == Meaning::Gap {
                eprintln!(
                    "{node}: nothing was traced for some time before, as no client was subscribed"
                );
            }
        }
        News::Status(status) => {
            for shortcoming in &status.shortcomings {
                eprintln!("not seen: {}", printable(shortcoming));
            }
        }
        News::Broken(e) => {
            merge.remove(source);
            eprintln!("agent {source}: {:#}; trying again", Error::new(e));
        }
        News::Refused(e) => {
            merge.remove(source);
            eprintln!("agent {source} refuses: {:#}", Error::new(e));
        }
        News::Finished => merge.remove(source),
        // Of the past nothing was asked for.
        News::CaughtUp => {}
    }
}

fn print((node, event): Named) {
    let reason = event.reason();
    let connection = event.connection.unwrap_or_default();
    let who = connection.identity.unwrap_or_default();
    let remote = connection.remote.unwrap_or_default();
    let counters = event.counters.unwrap_or_default();
    // What others have chosen must not act on the terminal.
    println!(
        "{node} {}/{} ↔ {}:{} {reason:?} sent {} received {}",
        printable(&who.namespace),
        printable(&who.pod),
        printable(&remote.address),
        remote.port,
        counters.bytes_sent,
        counters.bytes_received
    );
}

fn tls() -> Result<Option<Tls>> {
    let file = |name| env::var_os(name);
    let Some(ca) = file("TLS_CA") else {
        return Ok(None);
    };
    let (shown, key) = (file("TLS_CERT"), file("TLS_KEY"));
    let shown = shown.as_ref().zip(key.as_ref());
    let shown = shown.map(|(shown, key)| (Path::new(shown), Path::new(key)));
    let tls = Tls::read(Path::new(&ca), shown)?;
    Ok(Some(match env::var("TLS_NAME") {
        Ok(name) => tls.named(&name),
        Err(_) => tls,
    }))
}

/// For ever, if there is no time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
