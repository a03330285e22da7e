//! `/metrics` and `/health` over HTTP, on a listener of their own: who may scrape need not be one who may read.

use std::{future::Future, io, sync::Arc};

use axum::{
    Router,
    extract::State as Shared,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use super::text;
use crate::{health::State, repository::Repository};

/// Serves the metrics and the health of a repository until `shutdown` resolves.
pub async fn serve_metrics(
    repository: Arc<Repository>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let routes = Router::new().route("/metrics", get(metrics)).route("/health", get(health));
    axum::serve(listener, routes.with_state(repository)).with_graceful_shutdown(shutdown).await
}

async fn metrics(Shared(repository): Shared<Arc<Repository>>) -> Response {
    const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, FORMAT)], text(&repository).await).into_response()
}

/// 200 while reads work, with `ok` or `degraded` in the first line; else 503 with `down`. A line for each cause follows.
async fn health(Shared(repository): Shared<Arc<Repository>>) -> Response {
    let health = repository.health().await;
    let state = health.state();
    let code = if state == State::Down { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let causes = health.causes.iter().map(|(cause, line)| format!("{}: {line}\n", cause.name()));
    (code, format!("{state}\n{}", causes.collect::<String>())).into_response()
}
