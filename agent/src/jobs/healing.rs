//! Healing: what of a volume's base is damaged on the server is sent again with the next backup.

use std::ops::Range;

use thinbak_proto::{
    Failed, FailureKind,
    v1::{Generation, GenerationSelector, GetDamageRequest, VolumeName, generation_selector::Which},
};
use tonic::Code;

use super::plan::Due;
use crate::{repository_client::RepositoryConnection, sink::Commit};

/// Damaged ranges that are sent again one by one; with more all content is compared.
const MAX_RANGES: usize = 1 << 20;

/// Why a volume's backup ended early.
pub(super) enum Halt {
    Failed(Failed),
    /// Damage came to light on the server: it is known from now on, and another attempt goes round it or heals it.
    Damage(Failed),
}

impl Halt {
    /// Of what the server, or the way to it, has said.
    pub(super) fn of_server(failed: Failed) -> Self {
        match failed.kind {
            FailureKind::Damaged => Self::Damage(failed),
            _ => Self::Failed(failed),
        }
    }
}

impl From<Failed> for Halt {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

/// The generation that a commit made, and how many bytes it healed.
pub(super) fn done(commit: Commit) -> Result<(Generation, u64), Halt> {
    match commit {
        Commit::Done { generation, healed_bytes } => Ok((*generation, healed_bytes)),
        Commit::Incomplete(chunks) => Err(Halt::Damage(
            Failed::new(
                FailureKind::Damaged,
                format!("{chunks} chunks that the server had when it was asked were found damaged since"),
            )
            .with_hint("run the backup again: it sends what is missing"),
        )),
    }
}

/// Asks what of the base's generation is damaged. A base whose map is damaged cannot be built upon: it is given up.
pub(super) async fn ask(
    connection: &RepositoryConnection,
    name: Option<&String>,
    due: &mut Due,
) -> Result<(), Failed> {
    let (Some(base), Some(name)) = (&due.base, name) else { return Ok(()) };
    let generation = base.generation;
    let request = GetDamageRequest {
        volume: Some(VolumeName { name: name.clone(), host: String::new() }),
        selector: Some(GenerationSelector { which: Some(Which::Number(generation)) }),
    };
    let mut ranges = match connection.repository().get_damage(request).await {
        Ok(ranges) => ranges.into_inner(),
        // A server that is older than this question.
        Err(status) if status.code() == Code::Unimplemented => return Ok(()),
        Err(status) => return Err(status.into()),
    };
    let mut damaged: Vec<Range<u64>> = Vec::new();
    while let Some(range) = ranges.message().await? {
        if range.map_node {
            due.give_up(format!("the map of generation {generation} is damaged"));
            return Ok(());
        }
        if damaged.len() >= MAX_RANGES {
            due.give_up(format!("more of generation {generation} is damaged than can be listed"));
            return Ok(());
        }
        damaged.push(range.offset_bytes..range.offset_bytes.saturating_add(range.length_bytes));
    }
    if !damaged.is_empty() {
        let bytes: u64 = damaged.iter().map(|range| range.end - range.start).sum();
        tracing::warn!(volume = due.name, generation, bytes, "damaged on the server, and sent again");
    }
    due.damaged = damaged;
    Ok(())
}
