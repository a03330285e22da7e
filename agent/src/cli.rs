//! The command line: what was typed becomes calls on a service, and answers become output and an exit code.

mod agent;
mod args;
mod backup;
mod collect;
mod demo;
mod diff;
mod docs;
mod generation;
mod grammar;
mod interrupt;
mod job;
mod jobs;
mod metadata;
mod pool;
mod prune;
mod rebuild;
mod restore;
mod shape;
mod status;
mod stop;
mod transfer;
mod verify;
mod volume;

use std::{
    env,
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use clap::Parser as _;
use thinbak_proto::{Failed, FailureKind};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use self::{
    args::{Cli, Command, Global},
    stop::Stop,
};
use crate::{
    config::{Settings, Surroundings, host_name},
    output::{Output, json},
    pools::watch,
};

/// What every command has at hand.
struct Context {
    settings: Settings,
    output: Output,
    /// What was typed of it, to read the configuration again.
    global: Global,
}

/// Runs the command of this process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.global.json, cli.global.quiet);
    if let Command::ResumeIfLeft { devices } = &cli.command {
        return resume_if_left(devices, output);
    }
    log_to_stderr(&cli);
    let prints_data = prints_data(&cli.command);
    let stopped = match run(cli, output) {
        Ok(()) | Err(Stop::PipeClosed) => return ExitCode::SUCCESS,
        Err(stopped) => stopped,
    };
    if let Stop::Failed(failed) = &stopped {
        output.failure(failed);
        if output.is_json() && !prints_data {
            // A reader that is gone has no use for it.
            let _ = output.json_line(&json::error("", None, failed));
        }
    }
    ExitCode::from(stopped.exit_code())
}

/// Before there are logs, settings and threads: nothing of that may wait for a device that is suspended.
fn resume_if_left(devices: &[String], output: Output) -> ExitCode {
    match unless_told_to_stop(|| watch(devices)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            output.failure(&failed);
            ExitCode::from(failed.exit_code())
        }
    }
}

/// Does something that the signals which end a process do not end: they may be meant for the whole service.
fn unless_told_to_stop(work: impl FnOnce() -> Result<(), Failed>) -> Result<(), Failed> {
    let failed = |error: io::Error| Failed::new(FailureKind::Failed, format!("handle signals: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let _entered = runtime.enter();
    let _term = signal(SignalKind::terminate()).map_err(failed)?;
    let _interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    work()
}

fn run(cli: Cli, output: Output) -> Result<(), Stop> {
    let settings = settings(&cli.global)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| {
        Failed::new(FailureKind::Failed, format!("start the threads of the command: {error}"))
    })?;
    let global = cli.global;
    runtime.block_on(dispatch(Context { settings, output, global }, cli.command))
}

async fn dispatch(context: Context, command: Command) -> Result<(), Stop> {
    thinbak_server::survive_file_size_limit()?;
    // The daemon has its own way to end, and so has a job, whose hook `after` must run.
    let command = match command {
        Command::Agent(command) => return agent::run(&context, command).await,
        Command::Job(command) => return job::run(&context, command).await,
        command => command,
    };
    interrupt::unless_interrupted(async {
        match command {
            Command::Agent(command) => agent::run(&context, command).await,
            Command::Job(command) => job::run(&context, command).await,
            Command::Status => status::run(&context).await,
            Command::Demo(demo) => demo::run(&context, demo).await,
            Command::Pool(command) => pool::run(&context, command).await,
            Command::Volume(command) => volume::run(&context, command).await,
            Command::Msnap(command) => metadata::msnap(&context, command).await,
            Command::Dump(dump) => metadata::dump(&context, dump).await,
            Command::Delta(delta) => metadata::delta(&context, delta).await,
            Command::Backup(backup) => backup::run(&context, backup).await,
            Command::Generation(command) => generation::run(&context, command).await,
            Command::Restore(restore) => restore::run(&context, restore).await,
            Command::Verify(verify) => verify::run(&context, verify).await,
            Command::Prune(prune) => prune::run(&context, prune).await,
            Command::Collect(collect) => collect::run(&context, collect).await,
            Command::ResumeIfLeft { devices } => Ok(watch(&devices)?),
            Command::Completions { shell } => docs::completions(shell),
            Command::Man { dir } => docs::man(&dir),
        }
    })
    .await
}

/// Commands whose stdout is something else than JSON of ours.
fn prints_data(command: &Command) -> bool {
    matches!(
        command,
        Command::Dump(_)
            | Command::Delta(_)
            | Command::Volume(args::Volume::Export { .. })
            | Command::Completions { .. }
            | Command::Man { .. }
    )
}

fn settings(global: &Global) -> Result<Settings, Failed> {
    let directory = env::current_dir()
        .map_err(|error| Failed::new(FailureKind::Failed, format!("find the current directory: {error}")))?;
    let around = Surroundings {
        variable: &|name| env::var_os(name),
        root: rustix::process::geteuid().is_root(),
        directory,
    };
    Settings::resolve(global.level(), global.config.as_deref(), &around)
}

/// Logs are for daemons and for `-v`; `RUST_LOG` overrules.
fn log_to_stderr(cli: &Cli) {
    let daemon = matches!(cli.command, Command::Agent(args::Agent::Run));
    let level = match (cli.global.quiet, daemon, cli.global.verbose) {
        (true, ..) => "error",
        (_, true, 0) | (_, false, 1) => "thinbak_agent=info,thinbak_server=info,thinbak_engine=info,warn",
        (_, false, 0) => "error",
        _ => "thinbak_agent=debug,thinbak_server=debug,thinbak_engine=debug,info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    // It logs between a suspend and its resume, when whoever writes the logs may be waiting for the device.
    let filter = match "devicemapper=off".parse() {
        Ok(silent) => filter.add_directive(silent),
        Err(_) => filter,
    };
    let colour = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    logger.with_target(false).with_ansi(colour).init();
}

#[cfg(test)]
mod tests;
