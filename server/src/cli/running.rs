//! `thinbak-server run`.

use std::{future::Future, net::SocketAddr, path::Path, sync::Arc};

use thinbak_proto::{Failed, FailureKind};
use thinbak_server::{
    Certificates, Repository, ServeError, TlsFiles, config::Config, schedule, serve, serve_metrics,
    serve_over_tls,
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};

use super::{open, output::Output};

/// Where, and how.
pub(super) struct Listen {
    pub(super) address: SocketAddr,
    pub(super) metrics: Option<SocketAddr>,
    /// In the clear without.
    pub(super) tls: Option<TlsFiles>,
}

pub(super) async fn serve_repository(
    dir: &Path,
    listen: Listen,
    mut config: Config,
    output: &Output,
) -> Result<u8, Failed> {
    let Listen { address, metrics, tls } = listen;
    if let Some(address) = metrics.filter(|address| !address.ip().is_loopback() && !config.metrics_public) {
        let message =
            format!("metrics on {address}: whoever reaches it reads the names and sizes of volumes");
        return Err(Failed::new(FailureKind::Usage, message)
            .with_hint("take an address of the loopback, or say `metrics_public = true` in server.toml"));
    }
    let certificates = tls.map(Certificates::load).transpose()?;
    // Both before anything is opened: a signal from here on ends in an orderly stop.
    let handler = |kind| {
        signal(kind)
            .map_err(|error| Failed::new(FailureKind::Failed, format!("cannot handle signals: {error}")))
    };
    let (mut terminate, mut interrupt) =
        (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
    let mut hangup = handler(SignalKind::hangup())?;
    let repository = open(dir, &mut config, false).await?;
    let jobs = schedule::Jobs::of(&repository);
    jobs.check(&config.schedule)?;
    let listener = bind(address).await?;
    let fingerprint = certificates.as_ref().map(|certificates| certificates.fingerprint()).transpose()?;
    output.listening(local_address(&listener)?, fingerprint.as_ref());
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    };
    let scraped = match metrics {
        Some(address) => {
            let listener = bind(address).await?;
            output.serving_metrics(local_address(&listener)?);
            let served = serve_metrics(Arc::clone(&repository), listener, std::future::pending());
            Some(tokio::spawn(served))
        }
        None => None,
    };
    let served = tokio::select! {
        served = serve_as(Arc::clone(&repository), listener, certificates.clone(), shutdown) => served,
        () = keep_current(certificates.as_deref(), &mut hangup) => Ok(()),
        () = schedule::keep(Arc::clone(&repository), config.schedule, jobs) => Ok(()),
    };
    if let Some(scraped) = scraped {
        scraped.abort();
        // Cancelled, which was wanted, or ended by an error before.
        let _ = scraped.await;
    }
    repository.close().await;
    served?;
    Ok(0)
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failed> {
    TcpListener::bind(address)
        .await
        .map_err(|error| Failed::new(FailureKind::Failed, format!("cannot listen on {address}: {error}")))
}

fn local_address(listener: &TcpListener) -> Result<SocketAddr, Failed> {
    listener.local_addr().map_err(|error| {
        Failed::new(FailureKind::Failed, format!("cannot tell what is listened on: {error}"))
    })
}

async fn serve_as(
    repository: Arc<Repository>,
    listener: TcpListener,
    certificates: Option<Arc<Certificates>>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    match certificates {
        Some(certificates) => serve_over_tls(repository, listener, certificates, shutdown).await,
        None => serve(repository, listener, shutdown).await,
    }
}

/// Never ends. SIGHUP, or a change of its files, has the certificate read again.
async fn keep_current(certificates: Option<&Certificates>, hangup: &mut Signal) {
    match certificates {
        Some(certificates) => {
            let asked = async || {
                hangup.recv().await;
            };
            certificates.keep_current(asked).await;
        }
        None => loop {
            hangup.recv().await;
        },
    }
}
