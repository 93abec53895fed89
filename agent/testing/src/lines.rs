//! Lines of a pipe, with a deadline.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// What a pipe delivered.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Line(String),
    Nothing,
    End,
}

/// Reads a pipe to its end, in a thread of its own.
pub struct Lines(Receiver<String>);

impl Lines {
    pub fn of(pipe: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(pipe.read_until(b'\n', &mut line), Ok(1..)) {
                // Half a line is not hidden: it lacks its end, and then equals no other.
                let text = match line.strip_suffix(b"\n") {
                    Some(whole) => String::from_utf8_lossy(whole).into_owned(),
                    None => format!("{} (no newline)", String::from_utf8_lossy(&line)),
                };
                if sender.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
        Self(receiver)
    }

    pub fn next_within(&mut self, time: Duration) -> Next {
        match self.0.recv_timeout(time) {
            Ok(line) => Next::Line(line),
            Err(RecvTimeoutError::Timeout) => Next::Nothing,
            Err(RecvTimeoutError::Disconnected) => Next::End,
        }
    }
}
