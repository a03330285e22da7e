//! The Repository service: volumes and generations.

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use prost::Message as _;
use thinbak_proto::{Failed, FailureKind, MAX_MESSAGE_LEN, v1};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    catalogue::{Entry, Selector},
    manifest::{Manifest, Tombstone},
    repository::{CatalogueBackup, Repository, now_ms},
    verify,
};

pub(crate) struct GenerationService(pub(crate) Arc<Repository>);

impl GenerationService {
    async fn stats(&self) -> Result<v1::StatsResponse, Failed> {
        let (totals, store) = (self.0.catalogue.totals().await?, self.0.store.stats());
        Ok(v1::StatsResponse {
            volumes: totals.volumes,
            generations: totals.generations,
            packs: store.packs,
            pack_bytes: store.pack_bytes,
            chunks: store.chunks,
            chunk_plain_bytes: store.chunk_plain_bytes,
            chunk_stored_bytes: store.chunk_stored_bytes,
            map_nodes: store.map_nodes,
            map_node_bytes: store.map_node_bytes,
            index_bytes: store.index_bytes,
            catalogue_bytes: self.0.catalogue.disk_bytes(),
            logical_bytes: totals.mapped_bytes,
        })
    }

    async fn list(&self, volume: Option<v1::VolumeName>) -> Result<v1::ListGenerationsResponse, Failed> {
        let volume = match volume {
            Some(name) => Some(self.0.volume(Some(name)).await?),
            None => None,
        };
        let entries = self.0.catalogue.generations(volume).await?;
        let generations = entries.into_iter().map(|Entry { generation, .. }| generation).collect();
        let response = v1::ListGenerationsResponse { generations };
        if response.encoded_len() > MAX_MESSAGE_LEN {
            let message =
                format!("{} generations are more than one answer holds", response.generations.len());
            return Err(Failed::new(FailureKind::Failed, message).with_hint("ask for one volume"));
        }
        Ok(response)
    }

    /// Deletes a generation: the tombstone first, then what is visible. After a crash in between the
    /// generation is still there, and may be deleted again.
    async fn delete(&self, request: v1::DeleteGenerationRequest) -> Result<v1::Generation, Failed> {
        let _marking = self.0.marking.lock().await;
        let Entry { generation, revision } = self.0.generation(request.volume, request.selector).await?;
        let shown = format!("{}:{}", generation.volume_name, generation.number);
        if generation.protected {
            return Err(Failed::new(FailureKind::Refused, format!("cannot delete {shown}: it is protected"))
                .with_hint("take the protection off first"));
        }
        let newest = self.newest(&generation).await?;
        if newest == generation.number {
            let message = format!("cannot delete {shown}: it is the newest generation of its volume");
            return Err(Failed::new(FailureKind::Refused, message).with_hint("make a newer backup first"));
        }
        let deleted_at_ms = now_ms();
        let (tombstone, record) = Tombstone::new(&generation, revision, deleted_at_ms).record();
        self.0.store.put(vec![record]).await?;
        if !self.0.catalogue.mark_deleted(&generation, deleted_at_ms, tombstone).await? {
            return Err(Failed::new(FailureKind::Busy, format!("{shown} was changed while it was deleted")));
        }
        tracing::info!(volume = generation.volume_name, generation = generation.number, "generation deleted");
        Ok(generation)
    }

    async fn newest(&self, generation: &v1::Generation) -> Result<u64, Failed> {
        let uuid = uuid::Uuid::parse_str(&generation.volume_uuid)
            .map_err(|error| Failed::new(FailureKind::Damaged, format!("a volume's uuid: {error}")))?;
        let newest = self.0.catalogue.generation(uuid, Selector::Latest).await?;
        Ok(newest.map_or(generation.number, |newest| newest.generation.number))
    }

    /// Sets or takes off protection: a new revision of the manifest first, then what is visible.
    async fn protect(&self, request: v1::ProtectGenerationRequest) -> Result<v1::Generation, Failed> {
        let _marking = self.0.marking.lock().await;
        let Entry { mut generation, revision } = self.0.generation(request.volume, request.selector).await?;
        if generation.protected == request.protected {
            return Ok(generation);
        }
        generation.protected = request.protected;
        let revision = revision.saturating_add(1);
        let (manifest, record) = Manifest::new(&generation, revision).record();
        self.0.store.put(vec![record]).await?;
        if !self.0.catalogue.set_protected(&generation, revision, manifest).await? {
            let shown = format!("{}:{}", generation.volume_name, generation.number);
            return Err(Failed::new(
                FailureKind::Busy,
                format!("{shown} was changed while it was protected"),
            ));
        }
        Ok(generation)
    }
}

#[tonic::async_trait]
impl v1::repository_server::Repository for GenerationService {
    type VerifyStream = Pin<Box<dyn Stream<Item = Result<v1::VerifyEvent, Status>> + Send>>;

    async fn info(&self, _: Request<v1::InfoRequest>) -> Result<Response<v1::InfoResponse>, Status> {
        Ok(Response::new(v1::InfoResponse {
            repository_uuid: self.0.uuid().to_string(),
            format_version: self.0.format_version(),
            chunk_bytes: self.0.chunk_bytes(),
            server_version: env!("CARGO_PKG_VERSION").into(),
        }))
    }

    async fn stats(&self, _: Request<v1::StatsRequest>) -> Result<Response<v1::StatsResponse>, Status> {
        Ok(Response::new(self.stats().await?))
    }

    async fn list_volumes(
        &self,
        _: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        let volumes = self.0.catalogue.volumes().await.map_err(Failed::from)?;
        Ok(Response::new(v1::ListVolumesResponse { volumes }))
    }

    async fn list_generations(
        &self,
        request: Request<v1::ListGenerationsRequest>,
    ) -> Result<Response<v1::ListGenerationsResponse>, Status> {
        Ok(Response::new(self.list(request.into_inner().volume).await?))
    }

    async fn get_generation(
        &self,
        request: Request<v1::GetGenerationRequest>,
    ) -> Result<Response<v1::Generation>, Status> {
        let v1::GetGenerationRequest { volume, selector } = request.into_inner();
        Ok(Response::new(self.0.generation(volume, selector).await?.generation))
    }

    async fn delete_generation(
        &self,
        request: Request<v1::DeleteGenerationRequest>,
    ) -> Result<Response<v1::Generation>, Status> {
        Ok(Response::new(self.delete(request.into_inner()).await?))
    }

    async fn protect_generation(
        &self,
        request: Request<v1::ProtectGenerationRequest>,
    ) -> Result<Response<v1::Generation>, Status> {
        Ok(Response::new(self.protect(request.into_inner()).await?))
    }

    async fn verify(
        &self,
        request: Request<v1::VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        let plan = verify::Plan::of(&self.0, request.into_inner()).await?;
        let events = verify::start(Arc::clone(&self.0), plan);
        Ok(Response::new(Box::pin(ReceiverStream::new(events))))
    }

    async fn backup_catalogue(
        &self,
        request: Request<v1::BackupCatalogueRequest>,
    ) -> Result<Response<v1::BackupCatalogueResponse>, Status> {
        let keep = match request.into_inner().keep {
            0 => Repository::CATALOGUE_BACKUPS,
            keep => usize::try_from(keep).unwrap_or(usize::MAX),
        };
        let CatalogueBackup { path, bytes, removed } =
            self.0.back_up_catalogue(keep).await.map_err(Failed::from)?;
        let path = path.display().to_string();
        Ok(Response::new(v1::BackupCatalogueResponse { path, bytes, removed }))
    }
}
