//! One agent's stream, for as long as its node is asked: dialled again when it breaks, resumed where it was.

use std::time::Duration;

use anyhow::{Error, Result, anyhow};
use prost_types::Duration as ProtoDuration;
use tcptracer_proto::v1::watch_response::Message;
use tcptracer_proto::v1::{
    Lost, NodeStatus, Position, WatchRequest, WatchResponse, watch_request::History,
};
use tokio::sync::{mpsc, watch};
use tonic::{Code, Status, Streaming};

use crate::dial::{Agent, Dialer, Target, within};
use crate::event::Row;
use crate::exit::{Usage, refused};
use crate::merge::SourceId;
use crate::request::{Filters, Past, Span};
use crate::text::printable;

/// What a session has to tell, and who tells it.
pub struct Heard {
    /// The session.
    pub source: SourceId,
    /// What it tells.
    pub news: News,
}

/// What a session has to tell.
pub enum News {
    /// The agent answers; the node as it calls itself.
    Connected {
        /// The node.
        node: String,
        /// Another run answers than before: what happened between is not known.
        restarted: bool,
    },
    /// Events, in order.
    Rows(Vec<Row>),
    /// Something is missing here.
    Lost {
        /// The node as it calls itself.
        node: String,
        /// What.
        lost: Lost,
    },
    /// The node's state.
    Status(NodeStatus),
    /// What was asked for of the past has been shown.
    CaughtUp,
    /// It broke. What follows is tried again; what only asks for the past is not: an agent that has started again
    /// remembers nothing of it, and who asked can ask again.
    Broken(Error),
    /// Everything that was asked for was shown.
    Finished,
    /// The agent does not do what is asked. Another one may, on the same node.
    Refused(Error),
}

/// What to ask, and how.
#[derive(Clone)]
pub struct Question {
    /// How agents are reached.
    pub dialer: Dialer,
    /// Which events.
    pub filters: Filters,
    /// From when to when.
    pub span: Span,
}

/// How long to wait before the first and before any further attempt.
const BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(15);

/// Runs until the stream has ended as asked, or nobody listens. One that does not follow runs once.
pub async fn run(
    source: SourceId,
    question: Question,
    mut target: watch::Receiver<Target>,
    to: mpsc::Sender<Heard>,
) {
    let mut session = Session {
        question,
        source,
        position: None,
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
        let once = !session.question.span.follow;
        if session.tell(news).await.is_err() || once {
            return;
        }
        if session.worked {
            backoff = BACKOFF;
        }
        if refused {
            // It will refuse again.
            if target.changed().await.is_err() {
                return;
            }
            continue;
        }
        backoff = pause(&mut target, backoff).await;
    }
}

/// Waits for a while, or until there is another agent to ask or the same one is ready again: it would have to wait, and
/// what happens meanwhile would go unseen. Says how long to wait the next time.
async fn pause(target: &mut watch::Receiver<Target>, backoff: Duration) -> Duration {
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

struct Session {
    question: Question,
    source: SourceId,
    /// Behind what was received last.
    position: Option<Position>,
    caught_up: bool,
    /// The agent has answered, this time.
    worked: bool,
    to: mpsc::Sender<Heard>,
}

impl Session {
    async fn follow(&mut self, target: &Target) -> Result<(), Trouble> {
        let dialer = self.question.dialer.clone();
        let (agent, tunnel) = dialer.dial(target).await.map_err(trouble)?;
        let answer = within(dialer.timeout, tunnel.guard(self.ask(agent)));
        let stream = answer.await.map_err(trouble)?;
        match self.listen(stream).await {
            Err(Trouble::Broken(e)) => Err(Trouble::Broken(tunnel.explain(e).await)),
            end => end,
        }
    }

    async fn ask(&self, mut agent: Agent) -> Result<Streaming<WatchResponse>> {
        Ok(agent.watch(self.request()).await?.into_inner())
    }

    async fn listen(&mut self, mut stream: Streaming<WatchResponse>) -> Result<(), Trouble> {
        loop {
            let response = stream.message().await.map_err(|s| trouble(s.into()))?;
            match response {
                Some(response) => self.take(response).await?,
                None if self.question.span.follow => {
                    return Err(Trouble::Broken(anyhow!("the agent has ended the stream")));
                }
                None => return Ok(()),
            }
        }
    }

    fn request(&self) -> WatchRequest {
        let Filters { allow, deny } = self.question.filters.clone();
        let past = self.question.span.past.map(|past| match past {
            Past::Since(time) => History::Since(ProtoDuration {
                seconds: time.as_secs().cast_signed(),
                nanos: time.subsec_nanos().cast_signed(),
            }),
            Past::Last(count) => History::Last(count),
        });
        WatchRequest {
            allow,
            deny,
            history: self.position.map(History::Resume).or(past),
            history_only: !self.question.span.follow,
        }
    }

    async fn take(&mut self, response: WatchResponse) -> Result<(), Trouble> {
        let WatchResponse {
            node,
            epoch,
            message,
        } = response;
        if !self.worked {
            self.worked = true;
            let restarted = self.position.is_some_and(|p| p.epoch != epoch);
            if restarted {
                self.position = None;
            }
            let node = printable(&node);
            self.tell(News::Connected { node, restarted }).await?;
        }
        match message {
            None => Ok(()),
            Some(Message::Lost(lost)) => {
                self.position = lost.position.or(self.position);
                let node = printable(&node);
                self.tell(News::Lost { node, lost }).await
            }
            Some(Message::Status(status)) => self.take_status(epoch, status).await,
            Some(Message::Events(batch)) => {
                if let Some(last) = batch.events.last() {
                    self.position = Some(Position {
                        epoch,
                        sequence: last.sequence,
                        // Nothing was heard of what was lost behind it.
                        lost: 0,
                    });
                }
                let row = |event| Row::of_event(&node, event);
                let rows = batch.events.into_iter().map(row).collect();
                self.tell(News::Rows(rows)).await
            }
        }
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

    async fn tell(&self, news: News) -> Result<(), Trouble> {
        let heard = Heard {
            source: self.source,
            news,
        };
        self.to.send(heard).await.map_err(|_| Trouble::Unheard)
    }
}

/// Whether it is worth trying again.
fn trouble(error: Error) -> Trouble {
    let code = error.downcast_ref::<Status>().map(Status::code);
    let error = refused(error);
    match code {
        Some(Code::Unimplemented) => {
            Trouble::Refused(error.context("what answers is no agent that this program knows"))
        }
        Some(Code::Unauthenticated | Code::PermissionDenied) => Trouble::Refused(error),
        _ if error.is::<Usage>() => Trouble::Refused(error),
        _ => Trouble::Broken(error),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn pod(name: &str, ready: bool) -> Target {
        Target::Pod {
            namespace: "tcptracer".into(),
            name: name.into(),
            ready,
            tls_name: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_become_rarer_until_somebody_else_is_to_be_asked() {
        let (to, mut target) = watch::channel(pod("old", true));
        let start = Instant::now();
        let mut backoff = BACKOFF;
        let mut waited = Vec::new();
        for _ in 0..7 {
            backoff = pause(&mut target, backoff).await;
            waited.push(start.elapsed().as_millis());
        }
        assert_eq!(waited, [500, 1500, 3500, 7500, 15500, 30500, 45500]);
        assert_eq!(backoff, MAX_BACKOFF);

        for next in [pod("new", false), pod("new", true)] {
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
