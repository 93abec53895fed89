/*!
What a subscriber to many agents needs: the part of `kubectl tcptracer` that knows neither a cluster nor a terminal.

An agent tells of its own node only. Who wants to know of more connects to the agent of each, and puts together what
they tell. This crate has the parts:

- [`dial`] connects to an agent, by its [`address`], with [`tls`], or over a stream that you open: see
  [Other ways](#other-ways);
- [`session`] keeps one agent's stream: dials again, resumes where it was, tells what was lost, and ends it in order;
- [`merge`] puts the events of many streams into the order of time, within bounds;
- [`request`] says what is asked for, and [`error`] why it is not done.

The messages are those of `tcptracer-proto`; events come as their bytes, of which a subscriber reads what it needs. What others have chosen in them, such as the name of a process, is not safe to print
before it has gone through [`printable`](tcptracer_event::printable). Filters are [`Filter`](tcptracer_proto::v1::Filter)s: an agent sends, and its
kernel records, what somebody asks for, so ask for what you need.

# A subscriber

One task each keeps a stream, and all tell one receiver. `examples/subscribe.rs` is this in full, with several agents and
their order.

```no_run
use std::time::Duration;

use tcptracer_client::dial::{Dialer, Direct};
use tcptracer_client::request::{Filters, Span};
use tcptracer_client::session::{self, News, Question};
use tcptracer_proto::EventBytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

# #[tokio::main(flavor = "current_thread")]
# async fn main() -> Result<(), Box<dyn std::error::Error>> {
let question = Question {
    dialer: Dialer {
        way: Direct::default(),
        timeout: Some(Duration::from_secs(10)),
    },
    filters: Filters::default(),
    span: Span { past: None, follow: true },
};
let (to, mut heard) = mpsc::channel(64);
let end = CancellationToken::new();
// Whoever holds the other end of `target` can say that another agent is to be asked.
let (_, target) = watch::channel("127.0.0.1:50051".parse()?);
let with_node = |node: &str, event: EventBytes<'_>| Ok((node.to_string(), event.message()?));
tokio::spawn(session::run(0, question, target, with_node, to, end.clone()));

while let Some(heard) = heard.recv().await {
    match heard.news {
        News::Events(events) => println!("{events:?}"),
        News::Lost { node, lost } => eprintln!("{node} lost {}", lost.count),
        News::Broken(e) => eprintln!("{e}; trying again"),
        News::Refused(e) => return Err(e.into()),
        _ => {}
    }
}
# Ok(())
# }
```

# What is promised

Between two events of a session nothing is missing, unless one of these comes between them:
[`News::Lost`](session::News::Lost), [`News::Paused`](session::News::Paused), or
[`News::Connected`](session::News::Connected) with `restarted`. A session sees nothing of before it was connected for the first
time, unless it asks for the past. When the token is cancelled, the agent is asked to end the
stream, and what happened before is told before [`News::Finished`](session::News::Finished).

A receiver that does not keep up stops its sessions, and the agents then drop what has no room, and say so. A session holds one
message; what [`Merge`](merge::Merge) holds is bounded by its [`Limits`](merge::Limits).

# Other ways

Agents listen on loopback unless they are told otherwise, so most subscribers take a tunnel. A [`Way`](dial::Way) opens one, and
gives the stream to [`Connection::over`](dial::Connection::over). Its `Target` is whatever says which agent is meant:
`kubectl tcptracer` has the pod, and its way is the API server's port-forward.

```
use tcptracer_client::dial::{Connection, Way};
use tcptracer_client::error::Error;
use tokio::net::TcpStream;

/// Every agent by its own tunnel, such as one of `ssh -L`.
#[derive(Clone)]
struct Tunnels;

impl Way for Tunnels {
    /// The local port.
    type Target = u16;

    async fn connect(&self, port: &u16) -> Result<Connection, Error> {
        let stream = TcpStream::connect(("localhost", *port)).await;
        let stream = stream.map_err(|e| Error::Way(e.into()))?;
        // One that knows why it broke says so.
        let broken = async { None };
        Connection::over(stream, None, broken).await
    }
}
```
*/

pub mod address;
mod ask;
pub mod dial;
pub mod error;
pub mod merge;
pub mod request;
pub mod session;
pub mod time;
pub mod tls;
