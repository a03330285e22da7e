//! `thinbak demo`.

use std::path::PathBuf;

use thinbak_proto::{Failed, FailureKind, v1::job_event::Event};

use super::{Context, args::Demo, jobs, stop::Stop};
use crate::{
    demo::{self, DemoEvent, DemoOptions, DemoReport},
    output::{Column, human, json},
};

pub(super) async fn run(context: &Context, arguments: Demo) -> Result<(), Stop> {
    let failed =
        |what: &str, error: std::io::Error| Failed::new(FailureKind::Failed, format!("{what}: {error}"));
    let (folder, temporary): (PathBuf, _) = match arguments.dir {
        Some(dir) => {
            let dir = std::path::absolute(&dir).map_err(|error| failed(&dir.display().to_string(), error))?;
            (dir, None)
        }
        None => {
            let made = tempfile::Builder::new().prefix("thinbak-demo-").tempdir();
            let made = made.map_err(|error| failed("make a temporary directory", error))?;
            (made.path().to_owned(), Some(made))
        }
    };
    let options = DemoOptions { folder: folder.clone(), size_bytes: arguments.size };
    let outcome = show(context, &options).await;
    match temporary {
        Some(made) if arguments.keep => {
            let _ = made.keep();
            context.output.note(&format!("everything is kept in {}", folder.display()));
        }
        Some(made) => {
            made.close().map_err(|error| failed(&format!("remove {}", folder.display()), error))?;
        }
        None => context.output.note(&format!("everything is kept in {}", folder.display())),
    }
    outcome
}

async fn show(context: &Context, options: &DemoOptions) -> Result<(), Stop> {
    let output = context.output;
    let mut bars = output.progress();
    let mut tell = |event: DemoEvent| match event {
        DemoEvent::Step(step) => {
            bars.clear();
            output.note(&format!("* {step}"));
        }
        DemoEvent::Job(event) => {
            if let Some(Event::Status(status)) = event.event {
                bars.update(&status.volume, &status.phase, status.done_bytes, status.total_bytes);
            }
        }
    };
    let report = demo::run(options, &mut tell).await?;
    bars.clear();
    if output.is_json() { print_json(context, &report) } else { print(context, &report) }
}

fn print_json(context: &Context, report: &DemoReport) -> Result<(), Stop> {
    for row in &report.rows {
        context.output.json_line(&json::summary(&row.summary))?;
    }
    for proof in &report.proofs {
        context.output.json_line(&serde_json::json!({
            "message_type": "summary",
            "job": "compare",
            "source": proof.source,
            "restored": proof.restored,
            "blake3": proof.hash,
            "mapped_bytes": proof.mapped_bytes,
        }))?;
    }
    Ok(())
}

fn print(context: &Context, report: &DemoReport) -> Result<(), Stop> {
    let output = context.output;
    let mut columns = jobs::columns("backup");
    columns.drain(..3);
    columns.insert(0, Column::Left("STEP"));
    columns.insert(1, Column::Left("MODE"));
    let rows = report.rows.iter().map(|row| {
        let mut cells = jobs::row("backup", &row.summary);
        cells.drain(..3);
        cells.insert(0, row.step.clone());
        cells.insert(1, row.summary.mode.clone());
        cells
    });
    output.table(&columns, rows.collect())?;
    for proof in &report.proofs {
        output.line(&format!(
            "{} and {} are bit-identical: BLAKE3 {}, {} mapped",
            proof.source,
            proof.restored,
            proof.hash,
            human::bytes(proof.mapped_bytes)
        ))?;
    }
    Ok(output.line(&format!("the repository takes {} on disk", human::bytes(report.repository_bytes)))?)
}
