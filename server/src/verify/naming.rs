//! Naming the generations that need what is damaged.

use std::{collections::HashMap, sync::Arc};

use thinbak_proto::{Failed, ManifestId, v1};
use v1::verify_event::Event;

use super::{Bad, End, Places, Plan, Run, ends::Ends, geometry_of, places::DamagedPlace};

impl Run<'_> {
    /// Names the generations that need what is damaged.
    pub(super) async fn name_generations(&mut self, plan: &Plan) -> Result<(), End> {
        let ends = Ends::of(&plan.generations);
        let mut usual = HashMap::new();
        let mut wrong: HashMap<usize, Vec<DamagedPlace>> = HashMap::new();
        for (at, generation) in plan.generations.iter().enumerate() {
            let found = ends.check(self.repository, generation, &mut usual).await?;
            if !found.is_empty() {
                wrong.insert(at, found);
            }
        }
        // Chunks that are short because they are a volume's last ones are as they should be.
        let odd = self.bad.odd_chunks.keys().any(|id| !usual.contains_key(id));
        let walk = odd || !self.bad.records.is_empty() || self.bad.more;
        let bad = std::mem::take(&mut self.bad);
        let mut places = Places::new(&self.repository.store, &bad);
        for (at, generation) in plan.generations.iter().enumerate() {
            let mut found = if walk { places.generation(generation).await? } else { Vec::new() };
            for place in wrong.remove(&at).unwrap_or_default() {
                let covered =
                    |range: &DamagedPlace| (range.first..range.first + range.chunks).contains(&place.first);
                if !found.iter().any(covered) {
                    found.push(place);
                }
            }
            self.manifest(generation, &bad, found.is_empty()).await?;
            self.summary.damaged_generations += u64::from(!found.is_empty());
            for place in found {
                self.damage(generation, place).await?;
            }
        }
        Ok(())
    }

    /// A generation whose manifest is damaged can be read, but not be found again when the catalogue is lost.
    async fn manifest(&mut self, generation: &v1::Generation, bad: &Bad, counts: bool) -> Result<(), End> {
        let Some((id, is_there)) = self.look_for_manifest(generation).await? else { return Ok(()) };
        let reason = match bad.records.get(id.as_bytes()) {
            Some(reason) => Arc::clone(reason),
            // It may have been replaced or given up since the catalogue was asked.
            None if !is_there && self.look_for_manifest(generation).await? == Some((id, false)) => {
                format!("{id}: it is not in the repository, or known to be damaged").into()
            }
            None => return Ok(()),
        };
        self.summary.damaged_generations += u64::from(counts);
        self.summary.damaged += 1;
        self.send(Event::Damage(v1::VerifyDamage {
            volume_name: generation.volume_name.clone(),
            generation: generation.number,
            offset_bytes: 0,
            length_bytes: 0,
            reason: format!("its manifest {reason}"),
        }))
        .await
    }

    /// The generation's manifest, and whether it can be there, as far as is known without reading it.
    async fn look_for_manifest(
        &self,
        generation: &v1::Generation,
    ) -> Result<Option<(ManifestId, bool)>, Failed> {
        let Some(id) = self.repository.catalogue.manifest(generation).await? else { return Ok(None) };
        let found = self.repository.store.locate(vec![*id.as_bytes()]).await?;
        Ok(Some((id, found != [None])))
    }

    async fn damage(&mut self, generation: &v1::Generation, place: DamagedPlace) -> Result<(), End> {
        self.summary.damaged += 1;
        let geometry = geometry_of(generation);
        let damage = v1::VerifyDamage {
            volume_name: generation.volume_name.clone(),
            generation: generation.number,
            offset_bytes: place.first.saturating_mul(u64::from(generation.chunk_bytes)),
            length_bytes: geometry.bytes_of(place.first, place.chunks),
            reason: place.reason,
        };
        tracing::warn!(
            volume = damage.volume_name,
            generation = damage.generation,
            offset = damage.offset_bytes,
            length = damage.length_bytes,
            reason = damage.reason,
            "damage found"
        );
        self.send(Event::Damage(damage)).await
    }
}
