//! What of a generation is known to be damaged: asked by a backup before it begins, so that it sends these ranges
//! again.

use std::sync::Arc;

use thinbak_proto::{Failed, v1};
use tokio::sync::mpsc;
use tonic::Status;

use super::geometry_of;
use crate::{
    ingest::{Geometry, tree_of},
    map_tree::TreeDiff,
    repository::{Pin, Repository},
};

/// Chunks that are looked up at a time.
const LOOK_UP: usize = 4096;
/// Ranges that wait for the client.
const RANGES: usize = 64;

type Sender = mpsc::Sender<Result<v1::DamagedRange, Status>>;

/// The damaged ranges of a generation, ascending. Nothing is walked while nothing is known to be damaged, nor what was
/// found to be sound since the last damage.
pub(crate) fn known(
    repository: Arc<Repository>,
    generation: v1::Generation,
    pin: Pin,
) -> mpsc::Receiver<Result<v1::DamagedRange, Status>> {
    let (sender, receiver) = mpsc::channel(RANGES);
    let damages = repository.store.damages();
    let is_sound = tree_of(&generation).is_ok_and(|tree| repository.sound.contains(tree, damages));
    if repository.store.any_damage() && !is_sound {
        tokio::spawn(async move {
            let _pin = pin;
            let walk = Walk { sender: &sender, geometry: geometry_of(&generation), open: None, damages };
            if let Err(failed) = walk.run(&repository, &generation).await {
                // A client that has gone needs no reason.
                let _ = sender.send(Err(failed.into())).await;
            }
            // Who sees the end of the answer may close the repository, and is the last to have it.
            drop(repository);
            drop(sender);
        });
    }
    receiver
}

struct Walk<'a> {
    sender: &'a Sender,
    geometry: Geometry,
    /// The range that may go on: first chunk, chunks, whether it is a node's.
    open: Option<(u64, u64, bool)>,
    /// What was known when the walk began.
    damages: u64,
}

impl Walk<'_> {
    async fn run(mut self, repository: &Repository, generation: &v1::Generation) -> Result<(), Failed> {
        let tree = tree_of(generation)?;
        let mut chunks = TreeDiff::new(repository.store.clone(), None, tree);
        let mut wanted = Vec::with_capacity(LOOK_UP);
        while !self.sender.is_closed() {
            let found = chunks.next().await;
            if wanted.len() >= LOOK_UP || !matches!(found, Some(Ok(_))) {
                self.look_up(repository, &mut wanted).await?;
            }
            match found {
                Some(Ok(difference)) => {
                    wanted.extend(difference.new.chunk().map(|id| (difference.first, *id.as_bytes())));
                }
                Some(Err(unreadable)) => {
                    tracing::warn!(error = %unreadable, "the map of a generation is damaged");
                    self.add(unreadable.first, unreadable.chunks, true).await;
                }
                None => {
                    // Else a range is open.
                    if self.open.is_none() {
                        repository.sound.add(tree, self.damages);
                    }
                    break;
                }
            }
        }
        self.close().await;
        Ok(())
    }

    async fn look_up(
        &mut self,
        repository: &Repository,
        wanted: &mut Vec<(u64, [u8; 32])>,
    ) -> Result<(), Failed> {
        let wanted = std::mem::take(wanted);
        let found = repository.store.locate(wanted.iter().map(|(_, id)| *id).collect()).await?;
        for ((chunk, _), found) in wanted.into_iter().zip(found) {
            if found.is_none() {
                self.add(chunk, 1, false).await;
            }
        }
        Ok(())
    }

    async fn add(&mut self, first: u64, chunks: u64, node: bool) {
        match &mut self.open {
            Some((begin, len, of_node)) if *of_node == node && *begin + *len == first => *len += chunks,
            _ => {
                self.close().await;
                self.open = Some((first, chunks, node));
            }
        }
    }

    async fn close(&mut self) {
        let Some((first, chunks, map_node)) = self.open.take() else { return };
        let offset_bytes = first.saturating_mul(u64::from(self.geometry.chunk_bytes));
        let length_bytes = self.geometry.bytes_of(first, chunks);
        // A client that has gone is noticed by the walk.
        let _ = self.sender.send(Ok(v1::DamagedRange { offset_bytes, length_bytes, map_node })).await;
    }
}
