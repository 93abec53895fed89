//! Subscribes to an agent, and prints what closes and why: a subscriber at its smallest.
//!
//! ```text
//! kubectl -n tcptracer port-forward daemonset/tcptracer-agent 50051
//! cargo run -p tcptracer-proto --features transport --example subscribe -- http://127.0.0.1:50051 shop
//! ```
//!
//! It keeps its place in the stream: when the stream breaks, it is resumed where it was, and what the agent does
//! not remember any more is told as lost.

use std::env;
use std::error::Error;
use std::time::Duration;

use tcptracer_proto::v1::tcp_tracer_service_client::TcpTracerServiceClient;
use tcptracer_proto::v1::watch_request::History;
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_proto::v1::{Event, EventType, Filter, Position, WatchRequest};
use tonic::transport::Endpoint;

/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let agent = arguments
        .next()
        .ok_or("usage: subscribe http://HOST:PORT [NAMESPACE…]")?;
    let filter = Filter {
        namespaces: arguments.collect(),
        types: vec![EventType::Close.into()],
        ..Filter::default()
    };
    let mut position = None;
    loop {
        if let Err(e) = follow(&agent, &filter, &mut position).await {
            eprintln!("{e}; trying again");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Until the stream ends.
async fn follow(
    agent: &str,
    filter: &Filter,
    position: &mut Option<Position>,
) -> Result<(), Box<dyn Error>> {
    let channel = Endpoint::from_shared(agent.to_string())?.connect().await?;
    let mut client = TcpTracerServiceClient::new(channel);
    let request = WatchRequest {
        allow: vec![filter.clone()],
        history: position.map(History::Resume),
        ..WatchRequest::default()
    };
    let mut stream = client.watch(request).await?.into_inner();
    while let Some(response) = stream.message().await? {
        let epoch = response.epoch;
        match response.message {
            Some(Message::Events(batch)) => {
                for event in &batch.events {
                    print(&response.node, event);
                }
                if let Some(last) = batch.events.last() {
                    let sequence = last.sequence;
                    *position = Some(Position {
                        epoch,
                        sequence,
                        lost: 0,
                    });
                }
            }
            Some(Message::Lost(lost)) => {
                eprintln!(
                    "{}: {} lost ({:?})",
                    response.node,
                    lost.count,
                    lost.source()
                );
                *position = lost.position.or(*position);
            }
            // The past has been sent; this is where to resume if nothing follows.
            Some(Message::Status(status)) if status.live => {
                *position = Some(Position {
                    epoch,
                    sequence: status.sequence,
                    lost: status.lost,
                });
            }
            Some(Message::Status(_)) | None => {}
        }
    }
    Ok(())
}

fn print(node: &str, event: &Event) {
    let connection = event.connection.clone().unwrap_or_default();
    let who = connection.identity.clone().unwrap_or_default();
    let remote = connection.remote.clone().unwrap_or_default();
    let counters = event.counters.unwrap_or_default();
    println!(
        "{node} {}/{} ↔ {}:{} {:?} sent {} received {}",
        who.namespace.escape_debug(),
        who.pod.escape_debug(),
        remote.address,
        remote.port,
        event.reason(),
        counters.bytes_sent,
        counters.bytes_received
    );
}
