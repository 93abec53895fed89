//! How the ring thread is asked to flush, and told to stop.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Asks the ring thread to hand over everything that the kernel has reported. Asking never blocks.
#[derive(Clone, Debug)]
pub struct Flusher {
    /// A byte wakes the thread; its end stops the thread.
    to: Arc<UnixStream>,
    asked: Arc<AtomicU64>,
}

impl Flusher {
    /// Returns the number of this ask. A [`Flushed`](super::Message::Flushed) with this number or a larger one answers it;
    /// none does once the tracer has stopped.
    pub fn ask(&self) -> u64 {
        // Before the byte: whoever reads it finds this ask counted.
        let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        // If there is no room, other bytes will wake the thread. If it has ended, nobody is left to ask.
        let _ = (&*self.to).write(&[0]);
        number
    }

    /// Stops the thread, whoever else can still ask it.
    pub(super) fn stop(&self) {
        // It fails only if the thread has ended.
        let _ = self.to.shutdown(Shutdown::Write);
    }
}

/// The ring thread's end.
#[derive(Debug)]
pub(super) struct Asks {
    from: UnixStream,
    asked: Arc<AtomicU64>,
    /// The last ask that the thread knows of, and the last that it has answered.
    known: u64,
    answered: u64,
}

impl Asks {
    /// Both ends.
    pub fn new() -> io::Result<(Flusher, Self)> {
        let (to, from) = UnixStream::pair()?;
        to.set_nonblocking(true)?;
        from.set_nonblocking(true)?;
        let asked = Arc::new(AtomicU64::new(0));
        let flusher = Flusher {
            to: Arc::new(to),
            asked: Arc::clone(&asked),
        };
        let asks = Self {
            from,
            asked,
            known: 0,
            answered: 0,
        };
        Ok((flusher, asks))
    }

    /// Takes what has come; says whether the thread is to stop.
    pub fn take(&mut self) -> bool {
        match self.from.read(&mut [0; 64]) {
            Ok(0) => true,
            Ok(_) => {
                self.known = self.asked.load(Ordering::SeqCst);
                false
            }
            Err(e) => !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    /// The last ask, unless it has been answered.
    pub fn open(&self) -> Option<u64> {
        (self.known > self.answered).then_some(self.known)
    }

    /// This ask has been answered, and with it those before.
    pub fn answer(&mut self, number: u64) {
        self.answered = number;
    }
}

impl AsFd for Asks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.from.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_answer_is_for_all_who_have_asked() {
        let (flusher, mut asks) = Asks::new().expect("a socket pair");
        assert!(!asks.take());
        assert_eq!(asks.open(), None);
        assert_eq!([flusher.ask(), flusher.clone().ask()], [1, 2]);
        assert!(!asks.take());
        assert_eq!(asks.open(), Some(2));
        // One that comes meanwhile is another.
        flusher.ask();
        asks.answer(2);
        assert_eq!(asks.open(), None);
        assert!(!asks.take());
        assert_eq!(asks.open(), Some(3));
    }

    #[test]
    fn asking_never_blocks() {
        const MANY: u64 = 100_000;
        let (flusher, mut asks) = Asks::new().expect("a socket pair");
        for number in 1..=MANY {
            assert_eq!(flusher.ask(), number);
        }
        assert!(!asks.take());
        assert_eq!(asks.open(), Some(MANY));
    }

    #[test]
    fn it_stops_although_others_can_ask() {
        let (flusher, mut asks) = Asks::new().expect("a socket pair");
        let other = flusher.clone();
        other.ask();
        flusher.stop();
        assert!(!asks.take());
        assert!(asks.take());
        other.ask();
        assert!(asks.take());
    }
}
