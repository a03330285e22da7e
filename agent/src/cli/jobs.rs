//! Following a job: its progress, its summaries, its failures, and the exit code of all together.

use std::io;

use thinbak_proto::{
    Failed,
    v1::{JobError, JobEvent, JobSummary, job_event::Event},
};
use tonic::Streaming;

use super::{
    Context,
    stop::{PARTIAL, Stop},
};
use crate::output::{Column, ProgressBars, human, json};

/// Prints what a job tells until it ends.
pub(super) async fn follow(
    context: &Context,
    job: &str,
    mut events: Streaming<JobEvent>,
) -> Result<(), Stop> {
    let mut following =
        Following { context, job, bars: context.output.progress(), at: None, done: Vec::new(), failed: None };
    let ended = loop {
        match events.message().await {
            Ok(Some(JobEvent { event: Some(event) })) => following.event(event)?,
            Ok(Some(JobEvent { event: None })) => {}
            Ok(None) => break None,
            Err(status) => break Some(Failed::from(status)),
        }
    };
    following.end(ended)
}

struct Following<'a> {
    context: &'a Context,
    job: &'a str,
    bars: ProgressBars,
    /// What the last status was about.
    at: Option<String>,
    done: Vec<JobSummary>,
    /// The exit code of the first volume that failed.
    failed: Option<u8>,
}

impl Following<'_> {
    fn event(&mut self, event: Event) -> Result<(), Stop> {
        let output = self.context.output;
        match event {
            Event::Status(status) if output.is_json() => going_on(output.json_line(&json::status(&status)))?,
            Event::Status(status) => {
                self.move_on(&status.volume);
                self.bars.update(&status.volume, &status.phase, status.done_bytes, status.total_bytes);
            }
            Event::Summary(summary) => {
                self.bars.finish(&summary.volume);
                if output.is_json() {
                    going_on(output.json_line(&json::summary(&summary)))?;
                }
                self.done.push(summary);
            }
            Event::Error(JobError { job, volume, failure }) => {
                self.bars.finish(&volume);
                let failed = Failed::from(failure.unwrap_or_default());
                self.failed.get_or_insert(failed.exit_code());
                if output.is_json() {
                    going_on(output.json_line(&json::error(&job, Some(&volume), &failed)))?;
                }
                self.bars.clear();
                let message = format!("{job} of {volume}: {}", failed.message);
                output.failure(&Failed { message, ..failed });
            }
        }
        Ok(())
    }

    /// A restore does one generation after the other, so the one before is done with.
    fn move_on(&mut self, to: &str) {
        if self.job == "restore"
            && let Some(former) = self.at.replace(to.to_owned()).filter(|former| former != to)
        {
            self.bars.finish(&former);
        }
    }

    fn end(mut self, ended: Option<Failed>) -> Result<(), Stop> {
        self.bars.clear();
        let output = self.context.output;
        if !output.is_json() && !self.done.is_empty() {
            for summary in self.done.iter().filter(|summary| !summary.reason.is_empty()) {
                output.note(&format!("{}: {}, because {}", summary.volume, summary.mode, summary.reason));
            }
            self.done.iter().flat_map(|summary| &summary.notes).for_each(|note| output.note(note));
            let rows = self.done.iter().map(|summary| row(self.job, summary)).collect();
            going_on(output.table(&columns(self.job), rows))?;
        }
        match (ended, self.failed, self.done.is_empty()) {
            (None, None, _) => Ok(()),
            (Some(failed), None, true) => Err(Stop::Failed(failed)),
            (Some(failed), _, _) => {
                output.failure(&failed);
                let code = failed.exit_code();
                Err(Stop::Exit(if self.done.is_empty() { code } else { PARTIAL }))
            }
            (None, Some(code), true) => Err(Stop::Exit(code)),
            (None, Some(_), false) => Err(Stop::Exit(PARTIAL)),
        }
    }
}

/// A job goes on when nobody reads any more what it prints, and its exit code says how it ended.
pub(super) fn going_on(printed: io::Result<()>) -> Result<(), Stop> {
    match printed {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => Ok(printed?),
    }
}

/// The headings of a table of summaries.
pub(super) fn columns(job: &str) -> Vec<Column> {
    let mut columns = vec![Column::Left("VOLUME"), Column::Right("GENERATION"), Column::Left("MODE")];
    if job == "restore" {
        columns.push(Column::Left("TARGET"));
    }
    for name in ["SIZE", "MAPPED", "CHANGED", "READ", "SENT", "STORED", "TIME"] {
        columns.push(Column::Right(name));
    }
    columns
}

/// The line of one summary under [`columns`].
pub(super) fn row(job: &str, summary: &JobSummary) -> Vec<String> {
    let mut row = vec![summary.volume.clone(), summary.generation.to_string(), summary.mode.clone()];
    if job == "restore" {
        row.push(summary.target.clone());
    }
    for bytes in [
        summary.volume_bytes,
        summary.mapped_bytes,
        summary.changed_bytes,
        summary.read_bytes,
        summary.sent_bytes,
        summary.stored_bytes,
    ] {
        row.push(human::bytes(bytes));
    }
    row.push(human::seconds(summary.seconds));
    row
}
