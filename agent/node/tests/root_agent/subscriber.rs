//! A subscriber that is a process of its own, so that it can be stopped: this binary again.

use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_testing::DEADLINE;
use tcptracer_testing::lines::{Lines, Next};

use crate::client::{Client, of};

/// The first argument of such a process.
pub const SUBSCRIBER: &str = "subscriber";

/// What it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got {
    /// It is live.
    Live,
    /// An event with this number.
    Event(u64),
    /// So many were lost here, for it was too slow.
    Lost(u64),
}

/// A process that watches a namespace. Killed on drop.
pub struct Subscriber {
    child: Child,
    lines: Lines,
}

impl Subscriber {
    pub fn start(socket: &Path, namespace: &str) -> Self {
        let mut child = Command::new("/proc/self/exe")
            .arg(SUBSCRIBER)
            .arg(socket)
            .arg(namespace)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a subscriber starts");
        let lines = Lines::of(child.stdout.take().expect("it has a stdout"));
        let mut subscriber = Self { child, lines };
        assert_eq!(subscriber.next(), Got::Live);
        subscriber
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it can be signalled");
    }

    #[track_caller]
    pub fn next(&mut self) -> Got {
        let Next::Line(line) = self.lines.next_within(DEADLINE) else {
            panic!("the subscriber says nothing");
        };
        match line.split_once(' ') {
            Some(("event", number)) => Got::Event(number.parse().expect("a number")),
            Some(("lost", count)) => Got::Lost(count.parse().expect("a number")),
            _ => Got::Live,
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process' side.
pub fn subscribe(arguments: &[String]) -> ExitCode {
    let [socket, namespace] = arguments else {
        return ExitCode::FAILURE;
    };
    let client = Client::connect(Path::new(socket));
    let mut watch = client.watch(of(namespace));
    println!("live");
    while let Some(message) = watch.message_within(10 * DEADLINE) {
        match message {
            Message::Events(batch) => {
                for event in batch.events {
                    println!("event {}", event.sequence);
                }
            }
            Message::Lost(lost) => println!("lost {}", lost.count),
            Message::Paused(_) | Message::Status(_) => {}
        }
    }
    ExitCode::SUCCESS
}
