//! Whether the packs have the manifests of what the catalogue shows.

use std::sync::Arc;

use thinbak_proto::{Failed, ManifestId, v1};
use v1::verify_event::Event;

use super::{Bad, End, Run};

impl Run<'_> {
    /// A generation whose manifest is damaged can be read, but not be found again when the catalogue is lost.
    pub(super) async fn manifest(
        &mut self,
        generation: &v1::Generation,
        bad: &Bad,
        counts: bool,
    ) -> Result<(), End> {
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
}
