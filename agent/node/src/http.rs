//! Health and metrics over HTTP.
//!
//! Anybody may connect, so a connection is for one request, has some seconds, and gives way to newer ones when there
//! are many: nobody can keep the kubelet from asking.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::metrics::Metrics;
use crate::newest::Newest;
use crate::node::Handle;
use crate::report::Report;

/// Connections at a time.
const CONNECTIONS: usize = 64;

/// From a connection to the end of the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// After a connection could not be accepted: out of descriptors, perhaps.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone)]
struct Shared {
    node: Handle,
    metrics: Arc<Metrics>,
}

/// Serves `/livez`, `/readyz` and `/metrics` until `stop`.
pub async fn serve(
    listener: TcpListener,
    node: Handle,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<()> {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(text))
        .with_state(Shared { node, metrics });
    let mut connections = Newest::new(CONNECTIONS);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return Ok(()),
        };
        match accepted {
            Ok((stream, _)) => connections.start(answer(stream, router.clone())),
            Err(e) => {
                warn!("cannot accept an HTTP connection: {e}");
                sleep(PAUSE).await;
            }
        }
    }
}

/// How it ends is the client's concern.
async fn answer(stream: TcpStream, router: Router) {
    let connection = http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let _ = timeout(PATIENCE, connection).await;
}

/// Alive is who answers: the node's task.
async fn livez(State(shared): State<Shared>) -> Response {
    match shared.node.report().await {
        Some(_) => "ok\n".into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "ending\n").into_response(),
    }
}

/// Ready once the programs have been attached, which they are before this listens, and the pods have been
/// known: if their source goes away later, what is known still serves.
async fn readyz(State(shared): State<Shared>) -> Response {
    match shared.node.report().await {
        Some(Report {
            attach_error: Some(why),
            ..
        }) => {
            let text = format!("cannot attach the hooks: {why}\n");
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
        Some(report) if report.status.pods_synced => match report.paused_since {
            None => "ok\n".into_response(),
            Some(_) => "ok: idle until a client subscribes\n".into_response(),
        },
        Some(report) => {
            let why = report.status.pods_error.as_deref();
            let why = why.unwrap_or("their source has not answered yet");
            let text = format!("the pods are not known: {why}\n");
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
        None => (StatusCode::SERVICE_UNAVAILABLE, "ending\n").into_response(),
    }
}

async fn text(State(shared): State<Shared>) -> Response {
    const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let Some(report) = shared.node.report().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let Shared { node, metrics } = shared;
    let text =
        tokio::task::spawn_blocking(move || metrics.text(&report, &node.program_runs())).await;
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, FORMAT)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
