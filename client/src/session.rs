//! One agent's stream, for as long as its node is asked: dialled again when it breaks, resumed where it was.

use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::time::Duration;

use tcptracer_event::printable;
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_proto::v1::{
    EndWatchRequest, Lost, NodeStatus, Paused, Position, WatchRequest, WatchResponse,
    watch_request::History,
};
use tcptracer_proto::{Batch, EventBytes, Frame, Malformed};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use crate::dial::{Agent, Connection, Dialer, Tunnel, Way};
use crate::error::{Error, ErrorKind};
use crate::merge::SourceId;
use crate::request::{Filters, Span};

/// What a session has to tell, and who tells it.
pub struct Heard<T> {
    /// The session.
    pub source: SourceId,
    /// What it tells.
    pub news: News<T>,
}

/// What a session has to tell.
pub enum News<T> {
    /// The agent answers; the node as it calls itself.
    Connected {
        /// The node.
        node: String,
        /// Another run answers than before: what happened between is not known.
        restarted: bool,
    },
    /// Events, in order, as whoever asks wants to have them.
    Events(Vec<T>),
    /// Something is missing here.
    Lost {
        /// The node as it calls itself.
        node: String,
        /// What.
        lost: Lost,
    },
    /// Nothing was traced for some time.
    Paused {
        /// The node as it calls itself.
        node: String,
        /// When.
        pause: Paused,
        /// What that means for what was asked.
        meaning: Meaning,
    },
    /// The node's state.
    Status(NodeStatus),
    /// What was asked for of the past has been shown.
    CaughtUp,
    /// It broke. What follows is tried again; what only asks for the past is not: an agent that has started again
    /// remembers nothing of it, and who asked can ask again.
    Broken(Error),
    /// Everything that was asked for was shown, or the watch has ended and no agent is connected.
    Finished,
    /// The agent does not do what is asked. Another one may, on the same node.
    Refused(Error),
}

/// What a pause of an agent means for what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// All from some time on was asked for, or all since the stream broke. What happened in the pause is missing.
    Gap,
    /// The latest events were asked for. Some of them are older than the pause.
    Between,
    /// Nothing of the past was asked for. Tracing starts with the stream.
    Start,
}

impl Meaning {
    fn of(history: Option<History>) -> Self {
        match history {
            Some(History::Since(_) | History::Resume(_)) => Self::Gap,
            Some(History::Last(_)) => Self::Between,
            None => Self::Start,
        }
    }
}

/// What to ask, and how.
#[derive(Clone)]
pub struct Question<W> {
    /// How agents are reached.
    pub dialer: Dialer<W>,
    /// Which events.
    pub filters: Filters,
    /// From when to when.
    pub span: Span,
}

/// How long to wait before the first and before any further attempt.
const BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(15);

/// Runs until the stream has ended as asked, or nobody listens. One that does not follow runs once.
///
/// `target` says which agent is asked, and may change: then another one is asked, as soon as this one's stream breaks.
/// `convert` gets the name that the node goes by and the bytes of an event, decodes as much as it needs, and returns the
/// item that is passed on.
/// `end` ends the watch: what happened before is still told.
pub async fn run<W: Way, T>(
    source: SourceId,
    question: Question<W>,
    mut target: watch::Receiver<W::Target>,
    convert: impl FnMut(&str, EventBytes<'_>) -> Result<T, Malformed>,
    to: mpsc::Sender<Heard<T>>,
    end: CancellationToken,
) {
    let mut session = Session {
        question,
        source,
        convert,
        end,
        position: None,
        pauses: Meaning::Start,
        caught_up: false,
        worked: false,
        to,
    };
    let mut backoff = BACKOFF;
    loop {
        session.worked = false;
        let at = target.borrow_and_update().clone();
        let news = match session.follow(&at).await {
            Ok(()) => News::Finished,
            Err(Trouble::Unheard) => return,
            Err(Trouble::Refused(e)) => News::Refused(e),
            Err(Trouble::Broken(e)) => News::Broken(e),
        };
        let refused = matches!(news, News::Refused(_));
        let once = matches!(news, News::Finished) || !session.question.span.follow;
        if session.tell(news).await.is_err() || once {
            return;
        }
        if session.worked {
            backoff = BACKOFF;
        }
        let end = session.end.clone();
        let again = async {
            if !refused {
                backoff = pause(&mut target, backoff).await;
                return true;
            }
            // It will refuse again.
            target.changed().await.is_ok()
        };
        match end.run_until_cancelled(again).await {
            Some(true) => {}
            Some(false) => return,
            None => {
                let _ = session.tell(News::Finished).await;
                return;
            }
        }
    }
}

/// Waits for a while, or until there is another agent to ask or the same one is ready again: it would have to wait, and
/// what happens meanwhile would go unseen. Says how long to wait the next time.
async fn pause<T>(target: &mut watch::Receiver<T>, backoff: Duration) -> Duration {
    tokio::select! {
        Ok(()) = target.changed() => BACKOFF,
        () = tokio::time::sleep(backoff) => (backoff * 2).min(MAX_BACKOFF),
    }
}

enum Trouble {
    Broken(Error),
    Refused(Error),
    /// Nobody listens any more.
    Unheard,
}

/// A stream that has begun, who sends it, and the id by which it is ended.
struct Stream {
    agent: Agent,
    id: String,
    responses: Streaming<Frame>,
}

struct Session<W, C, T> {
    question: Question<W>,
    source: SourceId,
    /// Makes of an event what is told.
    convert: C,
    /// The watch ends.
    end: CancellationToken,
    /// Behind what was received last.
    position: Option<Position>,
    /// What pauses in this stream mean.
    pauses: Meaning,
    caught_up: bool,
    /// The agent has answered, this time.
    worked: bool,
    to: mpsc::Sender<Heard<T>>,
}

impl<W, T, C> Session<W, C, T>
where
    W: Way,
    C: FnMut(&str, EventBytes<'_>) -> Result<T, Malformed>,
{
    async fn follow(&mut self, target: &W::Target) -> Result<(), Trouble> {
        let end = self.end.clone();
        let connected = end.run_until_cancelled(self.connect(target)).await;
        // What ends before it has begun has missed nothing.
        let Some(connected) = connected else {
            return Ok(());
        };
        let (stream, tunnel) = connected.map_err(trouble)?;
        match self.listen(stream).await {
            Err(Trouble::Broken(e)) => Err(Trouble::Broken(tunnel.explain(e).await)),
            end => end,
        }
    }

    async fn connect(&mut self, target: &W::Target) -> Result<(Stream, Tunnel), Error> {
        let dialer = &self.question.dialer;
        let Connection { mut agent, tunnel } = dialer.dial(target).await?;
        let id = fresh_id();
        let request = self.request(id.clone());
        self.pauses = Meaning::of(request.history);
        let ask = async { Ok(agent.watch(request).await?.into_inner()) };
        let responses = dialer.within(tunnel.guard(ask)).await?;
        let stream = Stream {
            agent,
            id,
            responses,
        };
        Ok((stream, tunnel))
    }

    /// Until the stream has ended as asked. When the watch ends, the agent is asked to end it in order; what it still sends
    /// is read meanwhile, or it might not get to that.
    async fn listen(&mut self, stream: Stream) -> Result<(), Trouble> {
        let Stream {
            mut agent,
            id,
            responses,
        } = stream;
        if !self.question.span.follow {
            return self.read(responses).await;
        }
        let too_soon = || Trouble::Broken(Error::Ended);
        let end = self.end.clone();
        let mut ended = pin!(async {
            end.cancelled().await;
            agent.end_watch(EndWatchRequest { id }).await
        });
        let mut read = pin!(self.read(responses));
        tokio::select! {
            read = &mut read => {
                read?;
                // The end may overtake the answer.
                match end.is_cancelled() && ended.await.is_ok() {
                    true => Ok(()),
                    false => Err(too_soon()),
                }
            }
            answer = &mut ended => match answer.map_err(|status| (status.code(), status)) {
                Ok(_) => read.await,
                // The agent has ended it for another reason.
                Err((Code::NotFound, _)) => {
                    read.await?;
                    Err(too_soon())
                }
                // An older agent.
                Err((Code::Unimplemented, _)) => Ok(()),
                Err((_, status)) => Err(Trouble::Broken(status.into())),
            },
        }
    }

    async fn read(&mut self, mut responses: Streaming<Frame>) -> Result<(), Trouble> {
        while let Some(frame) = responses.message().await.map_err(|s| trouble(s.into()))? {
            match frame.batch().map_err(unreadable)? {
                Some(batch) => self.take_events(batch).await?,
                None => self.take(frame.decode().map_err(unreadable)?).await?,
            }
        }
        Ok(())
    }

    fn request(&self, id: String) -> WatchRequest {
        let Filters { allow, deny } = self.question.filters.clone();
        let past = self.question.span.past;
        WatchRequest {
            allow,
            deny,
            history: self.position.map(History::Resume).or(past),
            history_only: !self.question.span.follow,
            id,
        }
    }

    async fn take(&mut self, response: WatchResponse) -> Result<(), Trouble> {
        let WatchResponse {
            node,
            epoch,
            message,
        } = response;
        self.connected(&node, epoch).await?;
        match message {
            // Those have another way.
            None | Some(Message::Events(_)) => Ok(()),
            Some(Message::Lost(lost)) => {
                self.position = lost.position.or(self.position);
                let node = printable(&node).into_owned();
                self.tell(News::Lost { node, lost }).await
            }
            Some(Message::Paused(pause)) => {
                self.position = pause.position.or(self.position);
                let news = News::Paused {
                    node: printable(&node).into_owned(),
                    pause,
                    meaning: self.pauses,
                };
                self.tell(news).await
            }
            Some(Message::Status(status)) => self.take_status(epoch, status).await,
        }
    }

    /// Something has come from this run.
    async fn connected(&mut self, node: &str, epoch: u64) -> Result<(), Trouble> {
        if self.worked {
            return Ok(());
        }
        self.worked = true;
        let restarted = self.position.is_some_and(|p| p.epoch != epoch);
        if restarted {
            self.position = None;
        }
        let node = printable(node).into_owned();
        self.tell(News::Connected { node, restarted }).await
    }

    async fn take_events(&mut self, batch: Batch<'_>) -> Result<(), Trouble> {
        self.connected(batch.node, batch.epoch).await?;
        let node = printable(batch.node);
        let mut events = Vec::new();
        let mut last = None;
        let read = batch.each(|event| {
            events.push((self.convert)(&node, event)?);
            last = Some(event);
            Ok(())
        });
        read.map_err(unreadable)?;
        if let Some(last) = last {
            self.position = Some(Position {
                epoch: batch.epoch,
                sequence: last.sequence().map_err(unreadable)?,
                // Nothing was heard of what was lost behind it.
                lost: 0,
            });
        }
        self.tell(News::Events(events)).await
    }

    async fn take_status(&mut self, epoch: u64, status: NodeStatus) -> Result<(), Trouble> {
        let live = status.live;
        let position = Position {
            epoch,
            sequence: status.sequence,
            lost: status.lost,
        };
        self.tell(News::Status(status)).await?;
        if live {
            // Before, the history is still to come.
            self.position = Some(position);
            if !std::mem::replace(&mut self.caught_up, true) {
                self.tell(News::CaughtUp).await?;
            }
        }
        Ok(())
    }

    async fn tell(&self, news: News<T>) -> Result<(), Trouble> {
        let heard = Heard {
            source: self.source,
            news,
        };
        self.to.send(heard).await.map_err(|_| Trouble::Unheard)
    }
}

/// One that nobody else can guess: the standard library's hasher has random keys, for which it never blocks. A machine that
/// has just booted may have no other random numbers for minutes.
fn fresh_id() -> String {
    let keyed = RandomState::new();
    let [high, low] = [0_u8, 1].map(|half| keyed.hash_one(half));
    format!("{high:016x}{low:016x}")
}

/// What comes is not what an agent sends.
fn unreadable(why: Malformed) -> Trouble {
    trouble(Status::internal(why.to_string()).into())
}

/// Whether it is worth trying again.
fn trouble(error: Error) -> Trouble {
    match error.kind() {
        ErrorKind::Broken => Trouble::Broken(error),
        _ if error.code() == Some(Code::Unimplemented) => {
            Trouble::Refused(Error::NoAgent(Box::new(error)))
        }
        ErrorKind::Invalid | ErrorKind::Refused => Trouble::Refused(error),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn attempts_become_rarer_until_somebody_else_is_to_be_asked() {
        let (to, mut target) = watch::channel(("old", true));
        let start = Instant::now();
        let mut backoff = BACKOFF;
        let mut waited = Vec::new();
        for _ in 0..7 {
            backoff = pause(&mut target, backoff).await;
            waited.push(start.elapsed().as_millis());
        }
        assert_eq!(waited, [500, 1500, 3500, 7500, 15500, 30500, 45500]);
        assert_eq!(backoff, MAX_BACKOFF);

        for next in [("new", false), ("new", true)] {
            let start = Instant::now();
            to.send(next).expect("it is waited for");
            assert_eq!(pause(&mut target, MAX_BACKOFF).await, BACKOFF);
            assert_eq!(start.elapsed(), Duration::ZERO);
            target.borrow_and_update();
        }
        // Nobody is left to say whom to ask.
        drop(to);
        assert_eq!(pause(&mut target, MAX_BACKOFF).await, MAX_BACKOFF);
    }
}
