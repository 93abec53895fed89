//! How the ring thread is asked to flush and to attach or detach its hooks, and told to stop.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::config::Demand;

/// Asks the ring thread. Asking never blocks. Clones ask the same thread.
#[derive(Clone, Debug)]
pub struct Control {
    waker: Waker,
    asked: Arc<Asked>,
}

/// What was asked for.
#[derive(Debug, Default)]
struct Asked {
    flushes: AtomicU64,
    /// How often it was said what hooks are to be attached for, times four, and for what.
    hooks: AtomicU64,
}

impl Control {
    /// Asks the thread to hand over everything that the kernel has reported, and returns the number of this ask. A
    /// [`Flushed`](super::Message::Flushed) with this number or a larger one answers it; none does once the tracer has stopped.
    pub fn flush(&self) -> u64 {
        // Before the byte: whoever reads it finds this ask counted.
        let number = self.asked.flushes.fetch_add(1, Ordering::SeqCst) + 1;
        self.waker.wake();
        number
    }

    /// Asks the thread to have the hooks attached that this takes, and no others; returns the number of this ask. A
    /// [`Hooks`](super::Message::Hooks) with this number answers it, unless another ask has taken its place.
    pub fn attach(&self, demand: Demand) -> u64 {
        let next = |asked: u64| HooksAsk {
            number: HooksAsk::from(asked).number + 1,
            demand,
        };
        let hooks = &self.asked.hooks;
        let update = |asked| Some(next(asked).into());
        let before = hooks.fetch_update(Ordering::SeqCst, Ordering::SeqCst, update);
        self.waker.wake();
        // The update never refuses.
        next(before.unwrap_or_else(|asked| asked)).number
    }

    /// Stops the thread, whoever else can still ask it.
    pub(super) fn stop(&self) {
        // It fails only if the thread has ended.
        let _ = self.waker.0.shutdown(Shutdown::Write);
    }
}

/// Has the ring thread look at what it has to do. A byte wakes it; the end of the bytes stops it.
#[derive(Clone, Debug)]
pub(super) struct Waker(Arc<UnixStream>);

impl Waker {
    /// Never blocks.
    pub fn wake(&self) {
        // If there is no room, other bytes will wake the thread. If it has ended, nobody is left to wake.
        let _ = (&*self.0).write(&[0]);
    }
}

/// What hooks are to be attached for, and the number of the ask that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HooksAsk {
    /// Of the ask; 0 as long as nobody has asked.
    pub number: u64,
    /// For what.
    pub demand: Demand,
}

/// In one word, which is read and written at once.
impl From<u64> for HooksAsk {
    fn from(word: u64) -> Self {
        let demand = match word & 3 {
            0 => Demand::Nothing,
            1 => Demand::Connections,
            _ => Demand::Failures,
        };
        Self {
            number: word >> 2,
            demand,
        }
    }
}

impl From<HooksAsk> for u64 {
    fn from(ask: HooksAsk) -> Self {
        ask.number << 2 | ask.demand as Self
    }
}

/// The ring thread's end.
#[derive(Debug)]
pub(super) struct Asks {
    from: UnixStream,
    waker: Waker,
    asked: Arc<Asked>,
    /// The last ask for a flush that the thread knows of, and the last that it has answered.
    known: u64,
    answered: u64,
}

impl Asks {
    /// Both ends. Until somebody asks, hooks are attached for `demand`.
    pub fn new(demand: Demand) -> io::Result<(Control, Self)> {
        let (to, from) = UnixStream::pair()?;
        to.set_nonblocking(true)?;
        from.set_nonblocking(true)?;
        let waker = Waker(Arc::new(to));
        let asked = Arc::<Asked>::default();
        let first = HooksAsk { number: 0, demand };
        asked.hooks.store(first.into(), Ordering::SeqCst);
        let control = Control {
            waker: waker.clone(),
            asked: Arc::clone(&asked),
        };
        let asks = Self {
            from,
            waker,
            asked,
            known: 0,
            answered: 0,
        };
        Ok((control, asks))
    }

    /// Takes what has come; says whether the thread is to stop.
    pub fn take(&mut self) -> bool {
        match self.from.read(&mut [0; 64]) {
            Ok(0) => true,
            Ok(_) => {
                self.known = self.asked.flushes.load(Ordering::SeqCst);
                false
            }
            Err(e) => !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    /// The last ask for a flush, unless it has been answered.
    pub fn open(&self) -> Option<u64> {
        (self.known > self.answered).then_some(self.known)
    }

    /// This ask for a flush has been answered, and with it those before.
    pub fn answer(&mut self, number: u64) {
        self.answered = number;
    }

    /// The last ask for hooks.
    pub fn hooks(&self) -> HooksAsk {
        self.asked.hooks.load(Ordering::SeqCst).into()
    }

    /// For others who have something for the thread to do.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
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
        let (control, mut asks) = Asks::new(Demand::Nothing).expect("a socket pair");
        assert!(!asks.take());
        assert_eq!(asks.open(), None);
        assert_eq!([control.flush(), control.clone().flush()], [1, 2]);
        assert!(!asks.take());
        assert_eq!(asks.open(), Some(2));
        // One that comes meanwhile is another.
        control.flush();
        asks.answer(2);
        assert_eq!(asks.open(), None);
        assert!(!asks.take());
        assert_eq!(asks.open(), Some(3));
    }

    #[test]
    fn the_last_ask_for_hooks_counts() {
        let (control, asks) = Asks::new(Demand::Nothing).expect("a socket pair");
        assert_eq!(asks.hooks(), HooksAsk::from(0));
        for (number, demand) in [
            (1, Demand::Failures),
            (2, Demand::Connections),
            (3, Demand::Nothing),
        ] {
            assert_eq!(control.clone().attach(demand), number);
            assert_eq!(asks.hooks(), HooksAsk { number, demand });
        }
    }

    #[test]
    fn asking_never_blocks() {
        const MANY: u64 = 100_000;
        let (control, mut asks) = Asks::new(Demand::Nothing).expect("a socket pair");
        for number in 1..=MANY {
            assert_eq!(control.flush(), number);
        }
        assert!(!asks.take());
        assert_eq!(asks.open(), Some(MANY));
    }

    #[test]
    fn it_stops_although_others_can_ask() {
        let (control, mut asks) = Asks::new(Demand::Nothing).expect("a socket pair");
        let (other, waker) = (control.clone(), asks.waker());
        other.flush();
        control.stop();
        assert!(!asks.take());
        assert!(asks.take());
        other.flush();
        waker.wake();
        assert!(asks.take());
    }
}
