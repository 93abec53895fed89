//! `kubectl tcptracer`, as a process that is read from while it runs.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;

use serde_json::{Deserializer, Value};

use crate::cluster::{DEADLINE, said, wait_until};

fn plugin(arguments: &[&str]) -> Command {
    let mut plugin = Command::new("kubectl");
    plugin.arg("tcptracer").args(arguments);
    plugin
}

/// What it says, once it has ended well.
#[track_caller]
pub fn tell(arguments: &[&str]) -> String {
    said(&mut plugin(arguments))
}

/// The objects that it writes, once it has ended well.
#[track_caller]
pub fn objects(arguments: &[&str]) -> Vec<Value> {
    parsed(&tell(&[arguments, &["-o", "json"]].concat()))
}

/// What has happened since then. The agents had no client for some of that time, which they report.
#[track_caller]
pub fn since(arguments: &[&str]) -> Vec<Value> {
    let ended = ended(&[arguments, &["-o", "json"]].concat());
    let paused = "nodes not traced all the time: ";
    assert!(
        ended.code == Some(3) && ended.err.contains(paused),
        "{:?}: {}",
        ended.code,
        ended.err
    );
    parsed(&ended.out)
}

fn parsed(text: &str) -> Vec<Value> {
    let objects = Deserializer::from_str(text).into_iter();
    objects.map(|o| o.expect("it writes JSON")).collect()
}

/// It has ended.
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ended {
    /// What it said, but for connections that strangers had before the agents and that could not be found, of which every
    /// watch is told, and that it was the first to watch.
    pub fn said_of_ours(&self) -> impl Iterator<Item = &str> {
        let starts = "kubectl tcptracer: tracing starts now on ";
        let ours = move |line: &&str| !is_others(line) && !line.starts_with(starts);
        self.err.lines().filter(ours)
    }
}

fn is_others(line: &str) -> bool {
    line.ends_with("connections that ended without having been followed")
}

/// Runs until it ends, however that is.
pub fn ended(arguments: &[&str]) -> Ended {
    let output = plugin(arguments).output().expect("the plugin can be run");
    Ended {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A watch that goes on.
pub struct Watch {
    child: Child,
    rows: Receiver<String>,
    err: Receiver<String>,
}

/// Streams that agents have, by node; a node without an answer is left out.
fn subscribers() -> Vec<(String, u64)> {
    let output = plugin(&["status", "-o", "json"]).output();
    let text = output.expect("the plugin can be run").stdout;
    let agents = Deserializer::from_slice(&text)
        .into_iter::<Value>()
        .flatten();
    agents
        .map(|agent| {
            let node = agent["node"].as_str().expect("it has a node").into();
            (node, agent["subscribers"].as_u64().expect("a number"))
        })
        .collect()
}

impl Watch {
    /// Starts to watch, and returns once these nodes are asked, and no others. What happens from then on is shown.
    #[track_caller]
    pub fn start(arguments: &[&str], nodes: &[&str]) -> Self {
        wait_until("nobody watches", || {
            let now = subscribers();
            !now.is_empty() && now.iter().all(|(_, count)| *count == 0)
        });
        let watch = Self::start_early(arguments);
        watch.wait_live(nodes);
        watch
    }

    /// Starts to watch, before it can be known who is asked.
    pub fn start_early(arguments: &[&str]) -> Self {
        let mut child = plugin(arguments)
            .args(["-o", "jsonl"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the plugin can be run");
        let rows = lines(child.stdout.take().expect("it has a stdout"));
        let err = lines(child.stderr.take().expect("it has a stderr"));
        Self { child, rows, err }
    }

    /// Waits until these nodes are asked, and no others.
    #[track_caller]
    pub fn wait_live(&self, nodes: &[&str]) {
        wait_until("the watch is live", || {
            let asked = subscribers().into_iter().filter(|(_, count)| *count > 0);
            let mut asked: Vec<_> = asked.map(|(node, _)| node).collect();
            asked.sort();
            asked == nodes
        });
    }

    /// The next event.
    #[track_caller]
    pub fn event(&self) -> Value {
        match self.rows.recv_timeout(DEADLINE) {
            Ok(row) => serde_json::from_str(&row).expect("it writes JSON"),
            Err(RecvTimeoutError::Timeout) => panic!("waited in vain for an event"),
            Err(RecvTimeoutError::Disconnected) => {
                panic!("it ended: {:?}", self.err.iter().collect::<Vec<_>>())
            }
        }
    }

    /// So many events, which come in the order of their times.
    #[track_caller]
    pub fn events(&self, count: usize) -> Vec<Value> {
        let events: Vec<Value> = (0..count).map(|_| self.event()).collect();
        let times: Vec<&str> = events.iter().map(|e| text(e, "time")).collect();
        assert!(times.is_sorted(), "{times:?}");
        events
    }

    /// The next line on stderr that has this in it.
    #[track_caller]
    pub fn said(&self, what: &str) -> String {
        loop {
            match self.err.recv_timeout(DEADLINE) {
                Ok(line) if line.contains(what) => return line,
                Ok(_) => {}
                Err(e) => panic!("waited in vain for {what:?}: {e}"),
            }
        }
    }

    /// Ends it as Ctrl-C does. There must be no further event.
    #[track_caller]
    pub fn end(mut self) -> Ended {
        let pid = self.child.id().to_string();
        said(Command::new("kill").args(["-INT", &pid]));
        let code = self.child.wait().expect("it can be waited for").code();
        let out: Vec<_> = self.rows.iter().collect();
        assert!(out.is_empty(), "unexpected: {out:#?}");
        let err: Vec<_> = self.err.iter().collect();
        Ended {
            code,
            out: String::new(),
            err: err.join("\n"),
        }
    }

    /// The same, and nothing was lost.
    #[track_caller]
    pub fn end_well(self) {
        let ended = self.end();
        let ours: Vec<&str> = ended.said_of_ours().collect();
        let expected = match ended.err.lines().any(is_others) {
            true => Some(3),
            false => Some(0),
        };
        assert_eq!(
            (ended.code, &ours[..]),
            (expected, &[][..]),
            "{}",
            ended.err
        );
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (to, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let _ = to.send(line);
        }
    });
    lines
}

/// A field that is text; empty if it is not there.
pub fn text<'a>(event: &'a Value, field: &str) -> &'a str {
    event[field].as_str().unwrap_or_default()
}
