//! Connections of clients, past their handshake: a bounded number, and none that says nothing.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tonic::transport::server::Connected;
use tracing::warn;

use crate::metrics::Metrics;

/// Between two looks whether a client is still there.
pub const KEEPALIVE: Duration = Duration::from_secs(30);

/// A client of which nothing comes for so long is given up. One that is there answers each look.
const SILENCE: Duration = Duration::from_secs(2 * KEEPALIVE.as_secs());

/// Connections beside those that have a stream each: for questions.
const SPARE: usize = 64;

/// Between two lines in the log about connections that are refused.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What a connection runs over.
pub type Transport = Pin<Box<dyn ReadWrite>>;

/// Bytes in both directions.
pub trait ReadWrite: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> ReadWrite for T {}

/// Admits connections as long as there are few. Who is served keeps its place: it may have streams.
pub struct Door {
    places: Arc<Semaphore>,
    limit: usize,
    metrics: Arc<Metrics>,
    /// Refused since that was logged, and when it was.
    refused: u64,
    logged: Option<Instant>,
}

impl Door {
    /// As many as may have one of `max_streams` each, and some more.
    pub fn new(max_streams: usize, metrics: Arc<Metrics>) -> Self {
        let limit = max_streams + SPARE;
        Self {
            places: Arc::new(Semaphore::new(limit)),
            limit,
            metrics,
            refused: 0,
            logged: None,
        }
    }

    /// The connection, unless there are too many: then it is closed.
    pub fn admit(&mut self, transport: Transport) -> Option<Connection> {
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => Some(Connection::new(transport, SILENCE, place)),
            Err(_) => {
                self.refuse();
                None
            }
        }
    }

    fn refuse(&mut self) {
        self.metrics.count_refused_connection();
        self.refused += 1;
        if self.logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            warn!(
                "refused connections: {}, because {} are open (--max-streams and {SPARE})",
                self.refused, self.limit
            );
            self.refused = 0;
            self.logged = Some(Instant::now());
        }
    }
}

/// A client's connection.
pub struct Connection {
    transport: Transport,
    patience: Duration,
    silence: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn new(transport: Transport, patience: Duration, place: OwnedSemaphorePermit) -> Self {
        Self {
            transport,
            patience,
            silence: Box::pin(sleep(patience)),
            _place: place,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = self.transport.as_mut().poll_read(cx, buf) {
            let end = Instant::now() + self.patience;
            self.silence.as_mut().reset(end);
            return Poll::Ready(read);
        }
        self.silence
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.transport.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        self.transport.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        self.transport.as_mut().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_who_says_nothing_is_given_up() {
        const PATIENCE: Duration = Duration::from_secs(1);
        let place = Arc::new(Semaphore::new(1));
        let (mut client, transport) = duplex(64);
        let permit = Arc::clone(&place).try_acquire_owned().expect("a place");
        let mut connection = Connection::new(Box::pin(transport), PATIENCE, permit);
        // In all longer than it has patience, and never for long at a time.
        let talk = tokio::spawn(async move {
            for _ in 0..15 {
                sleep(PATIENCE / 10).await;
                client.write_all(b"x").await.expect("it is read");
            }
            client
        });
        let mut said = [0; 15];
        connection.read_exact(&mut said).await.expect("all is read");
        let client = talk.await.expect("it has said all");

        let silent = timeout(100 * PATIENCE, connection.read(&mut said)).await;
        let error = silent.expect("it is given up").expect_err("nothing comes");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(connection);
        assert_eq!(place.available_permits(), 1);
        drop(client);
    }
}
