//! What a person types, reads and gets as exit code. Data goes to stdout, all else to stderr.

mod access;
mod arguments;
mod catalogue;
mod certificate;
mod collect;
mod output;
mod place;
mod prune;
mod running;

use std::{
    ffi::OsStr,
    io::IsTerminal as _,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser as _;
use thinbak_proto::{Failed, FailureKind, v1};
use thinbak_server::{InitOptions, Repository, config::Config, routes};
use tonic::{Request, service::Routes};
use tracing_subscriber::EnvFilter;
use v1::{repository_client::RepositoryClient, verify_event::Event};

use arguments::{Arguments, Command, LogFormat};
use output::Output;

/// Damage was found.
const DAMAGED: u8 = 4;

/// Where the server listens unless something else is said.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7440);

/// Runs the command.
pub(super) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output { json: arguments.command.json() };
    start_log(&arguments);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(async {
            thinbak_server::survive_file_size_limit()?;
            // An empty variable says nothing.
            let named = arguments.config.as_deref().filter(|path| path.as_os_str() != OsStr::new(""));
            run(arguments.command, Config::read(named)?, &output).await
        }),
        Err(error) => Err(Failed::new(FailureKind::Failed, format!("cannot start the runtime: {error}"))),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failed) => {
            output.failed(&failed);
            ExitCode::from(failed.exit_code())
        }
    }
}

/// `RUST_LOG` goes before the flags. What the libraries say is for those who ask for more.
fn start_log(arguments: &Arguments) {
    let level = match (arguments.quiet, arguments.verbose, &arguments.command) {
        (true, ..) => "error",
        (false, 0, Command::Run { .. }) => "warn,thinbak_server=info",
        (false, 0, _) => "warn",
        (false, 1, _) => "info,thinbak_server=debug",
        (false, ..) => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().flatten_event(true).with_current_span(false).init(),
    }
}

async fn run(command: Command, config: Config, output: &Output) -> Result<u8, Failed> {
    match command {
        Command::Init { repo, chunk_size, tls, tls_names, json: _ } => {
            let uuid = Repository::init(&repo, InitOptions { chunk_bytes: chunk_size }).await?;
            let fingerprint = certificate::of_new(tls, &tls_names, &repo)?;
            output.initialised(&repo, uuid, chunk_size, &fingerprint);
            Ok(0)
        }
        Command::Run { repo, listen, metrics, tls, certificate } => {
            let dir = place(repo, &config)?;
            let listen = listen.or(config.listen).unwrap_or(DEFAULT_LISTEN);
            let (files, asked) = certificate::files(certificate, &config, &dir)?;
            let files = (tls || asked || !listen.ip().is_loopback()).then_some(files);
            let metrics = metrics.or(config.metrics);
            running::serve_repository(
                &dir,
                running::Listen { address: listen, metrics, tls: files },
                config,
                output,
            )
            .await
        }
        Command::Fingerprint { repo, tls, make, tls_names, json: _ } => {
            let repository = match &tls.tls_cert {
                Some(_) => PathBuf::new(),
                None => place(repo, &config)?,
            };
            let (files, _) = certificate::files(tls, &config, &repository)?;
            certificate::fingerprint(&files, make, &tls_names, output)
        }
        Command::Prune { repo, dry_run, json: _ } => {
            prune::run(&place(repo, &config)?, config, dry_run, output).await
        }
        Command::Stats { repo, json: _ } => {
            let stats = |mut client: RepositoryClient<Routes>| async move {
                Ok(client.stats(v1::StatsRequest {}).await?.into_inner())
            };
            output.stats(&with_repository(&place(repo, &config)?, stats).await?);
            Ok(0)
        }
        Command::Verify { repo, volume, sample, older_than, rate, json: _ } => {
            let request = v1::VerifyRequest {
                older_than_ms: older_than.map_or(0, milliseconds),
                bytes_per_second: rate.unwrap_or_default(),
                ..verify_request(volume.as_deref(), sample)?
            };
            with_repository(&place(repo, &config)?, |client| verify(client, request, output)).await
        }
        Command::RebuildCatalogue { repo, json: _ } => {
            catalogue::rebuild(&place(repo, &config)?, output).await
        }
        Command::BackupCatalogue { at, keep, json: _ } => {
            catalogue::back_up(&at.address(&config).await?, keep, output).await
        }
        Command::RestoreCatalogue { repo, copy, json: _ } => {
            catalogue::restore(&place(repo, &config)?, &copy, output).await
        }
        Command::Token(command) => access::token(command, &config, output).await,
        Command::Audit { at, since, json: _ } => access::audit(at, since, &config, output).await,
        Command::Collect(command) => collect::run(&command, config, output).await,
    }
}

/// The repository's directory: as the command line or the environment names it, else the configuration.
fn place(named: Option<PathBuf>, config: &Config) -> Result<PathBuf, Failed> {
    named.or_else(|| config.repo.clone()).ok_or_else(|| {
        Failed::new(FailureKind::Usage, "no repository is named")
            .with_hint("name one with --repo DIR, THINBAK_REPOSITORY, or `repo` in server.toml")
    })
}

/// Opens a repository and tells it what the configuration says of it; in a dry run only what it does not keep.
async fn open(dir: &Path, config: &mut Config, dry_run: bool) -> Result<Arc<Repository>, Failed> {
    let repository = Repository::open(dir).await?;
    repository.set_retention(std::mem::take(&mut config.retention));
    if let Some(grace) = config.grace.filter(|_| !dry_run) {
        repository.set_grace(grace).await?;
    }
    Ok(repository)
}

/// Calls the services of a repository that is opened in this process.
async fn with_repository<T, F>(
    dir: &Path,
    call: impl FnOnce(RepositoryClient<Routes>) -> F,
) -> Result<T, Failed>
where
    F: Future<Output = Result<T, Failed>>,
{
    let repository = Repository::open(dir).await?;
    let outcome = call(RepositoryClient::new(routes(Arc::clone(&repository)))).await;
    repository.close().await;
    outcome
}

/// Rounded up to a millisecond: 0 would mean that nothing was asked.
fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// VOLUME or VOLUME:GEN, where GEN is a number or `latest`.
fn verify_request(volume: Option<&str>, sample: f64) -> Result<v1::VerifyRequest, Failed> {
    use v1::generation_selector::Which;
    let Some(text) = volume else { return Ok(v1::VerifyRequest { sample, ..v1::VerifyRequest::default() }) };
    let last_part = text.rfind('/').map_or(0, |slash| slash + 1);
    let colon = text.get(last_part..).and_then(|part| part.find(':')).map(|colon| last_part + colon);
    let (name, generation) = match colon.and_then(|colon| Some((text.get(..colon)?, text.get(colon + 1..)?)))
    {
        Some((name, generation)) => (name, Some(generation)),
        None => (text, None),
    };
    let which = match generation {
        None => None,
        Some("latest") => Some(Which::Latest(true)),
        Some(number) => Some(Which::Number(number.parse().map_err(|_| {
            Failed::new(
                FailureKind::Usage,
                format!("{number:?} is neither a generation's number nor `latest`"),
            )
        })?)),
    };
    let selector = which.map(|which| v1::GenerationSelector { which: Some(which) });
    let volume = v1::VolumeName { name: name.into(), host: String::new() };
    Ok(v1::VerifyRequest { volume: Some(volume), selector, sample, ..v1::VerifyRequest::default() })
}

async fn verify(
    mut client: RepositoryClient<Routes>,
    request: v1::VerifyRequest,
    output: &Output,
) -> Result<u8, Failed> {
    let mut events = client.verify(Request::new(request)).await?.into_inner();
    let mut damaged = 0;
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Progress(progress)) => output.progress(progress),
            Some(Event::Record(record)) => output.damaged_record(&record),
            Some(Event::Pack(pack)) => output.damaged_pack(&pack),
            Some(Event::Damage(damage)) => output.damage(&damage),
            Some(Event::Summary(summary)) => {
                damaged = summary.damaged;
                output.verified(&summary);
            }
            None => {}
        }
    }
    Ok(if damaged == 0 { 0 } else { DAMAGED })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_starts_what_the_example_configures() {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let unit = std::fs::read_to_string(deploy.join("thinbak-server.service")).unwrap();
        let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let arguments = Arguments::try_parse_from(line.split_whitespace()).unwrap();
        // What is said here would win over the file.
        assert!(matches!(
            arguments.command,
            Command::Run { repo: None, listen: None, metrics: None, tls: false, .. }
        ));
        let config = Config::read(Some(&deploy.join("server.toml"))).unwrap();
        let state = unit.lines().find_map(|line| line.strip_prefix("StateDirectory=")).unwrap();
        assert!(config.repo.unwrap().starts_with(Path::new("/var/lib").join(state)));
    }

    #[test]
    fn the_generation_follows_the_first_colon_after_the_last_slash() {
        use v1::generation_selector::Which;
        let parsed = |text| {
            let request = verify_request(Some(text), 0.0).unwrap();
            (request.volume.unwrap().name, request.selector.and_then(|selector| selector.which))
        };
        assert_eq!(parsed("h:1/p/v"), ("h:1/p/v".into(), None));
        assert_eq!(parsed("h:1/p/v:12"), ("h:1/p/v".into(), Some(Which::Number(12))));
        assert_eq!(parsed("v:latest"), ("v".into(), Some(Which::Latest(true))));
        assert_eq!(verify_request(Some("h/p/v:soon"), 0.0).unwrap_err().exit_code(), 2);
    }
}
