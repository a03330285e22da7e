//! What is printed, and where: data on stdout, everything else on stderr. Only this module prints.

pub(crate) mod human;
pub(crate) mod json;
mod progress;

use std::io::{self, IsTerminal as _, Write as _};

use clap::builder::styling::{AnsiColor, Style};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;
use thinbak_proto::Failed;

pub(crate) use self::progress::ProgressBars;

/// How to print in this run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
}

/// A document that is printed an item a line; nothing before there is one.
pub(crate) struct LongDocument {
    out: io::BufWriter<io::Stdout>,
    /// What begins the document.
    before: Option<String>,
}

impl LongDocument {
    /// Prints one more item.
    pub(crate) fn item(&mut self, item: &Value) -> io::Result<()> {
        let before = self.before.take();
        write!(self.out, "{}{item}", before.as_deref().unwrap_or(",\n  "))
    }

    /// Ends the document.
    pub(crate) fn end(mut self) -> io::Result<()> {
        writeln!(self.out, "{}\n] }}", self.before.take().unwrap_or_default())?;
        self.out.flush()
    }
}

/// A column of a table.
pub(crate) enum Column {
    /// Words.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// Whether JSON was asked for.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// The one document that answers a query.
    pub(crate) fn document(self, document: &Value) -> io::Result<()> {
        let mut out = io::stdout().lock();
        serde_json::to_writer_pretty(&mut out, document)?;
        writeln!(out)?;
        out.flush()
    }

    /// A document with one list, too long to be made in memory.
    pub(crate) fn long_document(self, name: &str) -> LongDocument {
        let before = format!("{{ {}: [\n  ", Value::from(name));
        LongDocument { out: io::BufWriter::new(io::stdout()), before: Some(before) }
    }

    /// One line of a job.
    pub(crate) fn json_line(self, message: &Value) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{message}")?;
        out.flush()
    }

    /// A line of data.
    pub(crate) fn line(self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    }

    /// Rows under headings.
    pub(crate) fn table(self, columns: &[Column], rows: Vec<Vec<String>>) -> io::Result<()> {
        self.line(&table(columns, rows))
    }

    /// Something for the person at the terminal, not data.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet && !self.json {
            let _ = writeln!(anstream::stderr(), "{text}");
        }
    }

    /// Something that the person should look after; also beside JSON.
    pub(crate) fn warning(self, text: &str) {
        if !self.quiet {
            let _ = writeln!(anstream::stderr(), "warning: {text}");
        }
    }

    /// Why the command failed: a line, and a hint where there is one.
    pub(crate) fn failure(self, failed: &Failed) {
        let red: Style = AnsiColor::Red.on_default().bold();
        let bold = Style::new().bold();
        let mut err = anstream::stderr();
        let _ = writeln!(err, "{red}error:{red:#} {}", failed.message);
        if let Some(hint) = &failed.hint {
            let _ = writeln!(err, "{bold}hint:{bold:#} {hint}");
        }
    }

    /// Bars that are shown on a terminal only.
    pub(crate) fn progress(self) -> ProgressBars {
        ProgressBars::new(!self.quiet && !self.json && io::stderr().is_terminal())
    }
}

fn table(columns: &[Column], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| match column {
        Column::Left(name) | Column::Right(name) => *name,
    }));
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in columns.iter().enumerate() {
        if let Some(cells) = table.column_mut(index) {
            cells.set_padding((0, 2));
            if matches!(column, Column::Right(_)) {
                cells.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let lines = table.to_string();
    lines.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_no_borders_and_numbers_stand_at_the_right() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["long".to_owned(), "23456".to_owned()]];
        let text = table(&[Column::Left("NAME"), Column::Right("SIZE")], rows);
        assert_eq!(text, "NAME   SIZE\na         1\nlong  23456");
    }
}
