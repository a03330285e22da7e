//! What must be there, as far as a client was told, and the look at what is.

use std::collections::BTreeMap;

use thinbak_proto::v1;
use uuid::Uuid;

use super::history::{CHUNKS, Step, World};
use crate::{
    collect::tests::{needed, raises_the_dead, stored},
    ingest::tests::client::full_chunk,
};

/// What of a generation that a client was told of is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Alive,
    /// The answer said so, and nobody asked to undo it.
    Deleted,
    /// Something was asked for, and no answer said that it was done.
    Unsure,
}

pub(super) struct Volume {
    pub(super) uuid: Uuid,
    pub(super) name: String,
    /// The newest generation that a client was told of, and which attempt it is.
    pub(super) base: Option<(v1::Generation, usize)>,
    /// What each backup was to hold, by the number that its point has: the content of each chunk.
    pub(super) attempts: Vec<Vec<Option<u64>>>,
    /// By number.
    pub(super) fates: BTreeMap<u64, Fate>,
}

impl Volume {
    fn new(name: &str) -> Self {
        let (uuid, name) = (Uuid::new_v4(), name.to_owned());
        Self { uuid, name, base: None, attempts: Vec::new(), fates: BTreeMap::new() }
    }

    /// Notes what a backup on the base is to hold, by what it changes.
    pub(super) fn attempt(&mut self, changes: &[(u64, u64)]) -> usize {
        let mut content = match &self.base {
            Some((_, attempt)) => self.attempts[*attempt].clone(),
            None => vec![None; CHUNKS as usize],
        };
        changes.iter().for_each(|(chunk, new)| content[*chunk as usize] = Some(*new));
        self.attempts.push(content);
        self.attempts.len() - 1
    }

    /// A client is told of a generation.
    pub(super) fn committed(&mut self, attempt: usize, generation: v1::Generation) {
        let before = self.fates.insert(generation.number, Fate::Alive);
        assert_eq!(before, None, "a number is given twice: {generation:?}");
        self.base = Some((generation, attempt));
    }

    pub(super) fn numbers_of(&self, fate: Fate) -> impl Iterator<Item = u64> {
        self.fates.iter().filter(move |(_, is)| **is == fate).map(|(number, _)| *number)
    }
}

pub(super) struct Model {
    pub(super) volumes: Vec<Volume>,
    /// A record was damaged, and may be.
    pub(super) spoilt: bool,
}

impl Model {
    pub(super) fn new() -> Self {
        Self { volumes: ["h/p/a", "h/p/b", "h/p/healer"].map(Volume::new).into(), spoilt: false }
    }
}

impl World {
    /// Everything that must be true once somebody has healed what was spoilt.
    pub(super) async fn check(&mut self) {
        if self.model.spoilt {
            self.verify().await.unwrap();
            self.heal().await.unwrap();
        }
        self.look().await;
        self.collect().await.unwrap();
        self.look().await;
        // A pack that could not be completed is completed here, so that it can be freed.
        self.take(&Step::Reopen).await.unwrap();
        for _ in 0..2 {
            self.collect().await.unwrap();
        }
        let generations = self.look().await;
        assert_eq!(self.verify().await.unwrap(), [], "something is damaged");
        let (stored, needed) = (stored(self.place()), needed(self.place(), &generations).await);
        assert!(stored == needed, "{} records leak", stored.difference(&needed).count());
        assert!(!raises_the_dead(self.place(), &generations));
        self.take(&Step::Rebuild).await.unwrap();
        assert_eq!(self.look().await, generations, "a rebuilt catalogue says something else");
    }

    /// Compares what is visible with what a client was told; all of it restores.
    async fn look(&self) -> Vec<v1::Generation> {
        let place = self.place();
        let request = v1::ListGenerationsRequest::default();
        let listed = place.generations().list_generations(request).await.unwrap().into_inner().generations;
        for generation in &listed {
            let shown = format!("{}:{}", generation.volume_name, generation.number);
            let mut volumes = self.model.volumes.iter();
            let volume = volumes.find(|volume| volume.uuid.to_string() == generation.volume_uuid).unwrap();
            assert_ne!(volume.fates.get(&generation.number), Some(&Fate::Deleted), "{shown} is back");
            let attempt = generation.point.as_ref().unwrap().device_id as usize;
            let expected: Vec<_> =
                volume.attempts[attempt].iter().map(|content| content.and_then(full_chunk)).collect();
            let restored = place.restore(generation).await.unwrap();
            assert!(restored == expected, "{shown} restores to something else");
        }
        for volume in &self.model.volumes {
            for number in volume.numbers_of(Fate::Alive) {
                let is_it = |generation: &&v1::Generation| {
                    generation.volume_uuid == volume.uuid.to_string() && generation.number == number
                };
                assert!(listed.iter().any(|listed| is_it(&listed)), "{}:{number} is gone", volume.name);
            }
        }
        listed
    }
}
