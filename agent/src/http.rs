//! Health and metrics over HTTP.

use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::node::{Command, Report};

#[derive(Clone)]
struct Shared {
    commands: mpsc::Sender<Command>,
    metrics: Arc<Metrics>,
}

impl Shared {
    /// `None` if the node's task does not run any more.
    async fn report(&self) -> Option<Report> {
        let (reply, report) = oneshot::channel();
        self.commands.send(Command::Report(reply)).await.ok()?;
        report.await.ok()
    }
}

/// Serves `/livez`, `/readyz` and `/metrics` until `stop`.
pub async fn serve(
    listener: TcpListener,
    commands: mpsc::Sender<Command>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<()> {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(text))
        .with_state(Shared { commands, metrics });
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .context("the HTTP server failed")
}

/// Alive is who answers: the node's task.
async fn livez(State(shared): State<Shared>) -> Response {
    match shared.report().await {
        Some(_) => "ok\n".into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "ending\n").into_response(),
    }
}

/// Ready once the programs are attached, which they are before this listens, and the pods have been
/// known: if their source goes away later, what is known still serves.
async fn readyz(State(shared): State<Shared>) -> Response {
    match shared.report().await {
        Some(report) if report.status.pods_synced => "ok\n".into_response(),
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
    match shared.report().await {
        Some(report) => (
            [(header::CONTENT_TYPE, FORMAT)],
            shared.metrics.text(&report),
        )
            .into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
