//! `thinbak generation diff`: the ranges that two generations say different things of.

use thinbak_proto::{Failed, FailureKind, MapEntry, v1::Generation};

use super::{Context, stop::Stop};
use crate::{
    output::{human, json},
    repository_client::{Held, RepositoryConnection},
    source::{MapRun, MapWalk},
};

/// What the second generation has in a range in which the two differ.
fn content(entry: MapEntry) -> &'static str {
    match entry {
        MapEntry::Id(_) => "data",
        MapEntry::Zero => "zero",
        MapEntry::Hole => "unmapped",
    }
}

/// Chunks in a row that differ and hold the same kind of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    begin: u64,
    end: u64,
    content: &'static str,
}

/// Prints all that differs.
pub(super) async fn run(
    context: &Context,
    connection: &RepositoryConnection,
    from: &Held,
    to: &Held,
) -> Result<(), Stop> {
    let ([from_generation], [to_generation]) = (from.generations(), to.generations()) else {
        return Err(Failed::new(FailureKind::Usage, "a difference is that of two generations").into());
    };
    let mut walk = MapWalk::difference(connection.content(), from_generation, to_generation)?;
    let mut printer = Printer { context, from: from_generation, to: to_generation, ranges: 0, bytes: 0 };
    printer.begin()?;
    let mut pending: Option<Range> = None;
    while let Some(runs) = from.during(to.during(walk.next())).await? {
        for MapRun { chunk, count, entry } in runs {
            let next = Range { begin: chunk, end: chunk + count, content: content(entry) };
            match &mut pending {
                Some(range) if range.end == next.begin && range.content == next.content => {
                    range.end = next.end;
                }
                pending => pending.replace(next).map_or(Ok(()), |range| printer.range(range))?,
            }
        }
    }
    pending.map_or(Ok(()), |range| printer.range(range))?;
    printer.end()
}

/// Prints ranges as they are found.
struct Printer<'a> {
    context: &'a Context,
    from: &'a Generation,
    to: &'a Generation,
    ranges: u64,
    bytes: u64,
}

impl Printer<'_> {
    fn begin(&self) -> Result<(), Stop> {
        let output = self.context.output;
        if output.is_json() {
            let (from, to) = (json::generation(self.from), json::generation(self.to));
            return Ok(output.line(&format!("{{\"from\":{from},\n\"to\":{to},\n\"ranges\":["))?);
        }
        Ok(output.line(&format!("{:>20}  {:>20}  CONTENT", "OFFSET", "LENGTH"))?)
    }

    /// Chunks to bytes, clipped to the larger of the two sizes.
    fn range(&mut self, range: Range) -> Result<(), Stop> {
        let chunk = u64::from(self.to.chunk_bytes);
        let size = self.from.size_bytes.max(self.to.size_bytes);
        let begin = range.begin.saturating_mul(chunk).min(size);
        let length = range.end.saturating_mul(chunk).min(size) - begin;
        if length == 0 {
            return Ok(());
        }
        let output = self.context.output;
        if output.is_json() {
            let comma = if self.ranges > 0 { "," } else { "" };
            let range = serde_json::json!({
                "offset_bytes": begin, "length_bytes": length, "content": range.content,
            });
            output.line(&format!("{comma}{range}"))?;
        } else {
            output.line(&format!("{begin:>20}  {length:>20}  {}", range.content))?;
        }
        self.ranges += 1;
        self.bytes += length;
        Ok(())
    }

    fn end(self) -> Result<(), Stop> {
        let output = self.context.output;
        if output.is_json() {
            return Ok(output.line(&format!("],\n\"changed_bytes\":{}}}", self.bytes))?);
        }
        output.note(&format!("{} in {} ranges differ", human::bytes(self.bytes), self.ranges));
        Ok(())
    }
}
