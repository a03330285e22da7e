//! The Repository service: volumes and generations.

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use jiff::tz::TimeZone;
use thinbak_proto::{Failed, FailureKind, v1};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    catalogue::{Deleted, Entry, Filter, GenerationKey, Position},
    collect,
    ingest::tree_of,
    repository::{CatalogueBackup, Repository},
    retention::{
        self, Kept,
        prune::{self, Prune},
    },
    verify,
};

/// Generations or volumes in one answer at most. Names and points are bounded where they come in: this many fit a
/// message.
pub(crate) const PAGE: u32 = 1000;

pub(crate) struct GenerationService(pub(crate) Arc<Repository>);

impl GenerationService {
    async fn stats(&self) -> Result<v1::StatsResponse, Failed> {
        let (totals, store) = (self.0.catalogue.totals().await?, self.0.store.stats());
        let health = self.0.health().await;
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
            health: health.state().to_string(),
            problems: health.causes.iter().map(|(cause, line)| format!("{}: {line}", cause.name())).collect(),
        })
    }

    async fn list(&self, request: v1::ListGenerationsRequest) -> Result<v1::ListGenerationsResponse, Failed> {
        let volume = match request.volume {
            Some(name) => Some(self.0.volume(Some(name)).await?),
            None => None,
        };
        let grace_ms = self.0.catalogue.grace_ms().await?;
        let deleted_after_ms = request.deleted.then(|| self.0.now_ms().saturating_sub(grace_ms));
        let filter = Filter { volume, deleted_after_ms, newest: request.newest };
        let limit = page_of(request.page_size);
        let page = self.0.catalogue.page(filter, &position_of(&request.page_token)?, limit).await?;
        let full = u32::try_from(page.len()).is_ok_and(|length| length == limit);
        let next_page_token = page.last().filter(|_| full).map(token_of).unwrap_or_default();
        let mut response = v1::ListGenerationsResponse { next_page_token, ..Default::default() };
        for Deleted { entry: Entry { generation, .. }, deleted_at_ms } in page {
            match request.deleted {
                false => response.generations.push(generation),
                true => response.deleted.push(v1::DeletedGeneration {
                    generation: Some(generation),
                    deleted_at_ms,
                    undelete_until_ms: deleted_at_ms.saturating_add(grace_ms),
                }),
            }
        }
        Ok(response)
    }

    async fn undelete(&self, request: v1::UndeleteGenerationRequest) -> Result<v1::Generation, Failed> {
        let shown = request.volume.as_ref().map(|volume| volume.name.as_str()).unwrap_or_default();
        let shown = format!("{shown}:{}", request.number);
        let volume = self.0.volume(request.volume).await?;
        let key = GenerationKey { volume, number: request.number };
        retention::undelete(&self.0, key, &shown, self.0.now_ms()).await
    }

    async fn delete(&self, request: v1::DeleteGenerationRequest) -> Result<v1::Generation, Failed> {
        let Entry { generation, .. } = self.0.generation(request.volume, request.selector).await?;
        let key = key_of(&generation)?;
        let outcomes = retention::delete(&self.0, &[key], self.0.now_ms()).await?;
        let shown = format!("{}:{}", generation.volume_name, generation.number);
        match outcomes.into_iter().next().map(|(_, outcome)| outcome) {
            Some(Ok(deleted)) => Ok(deleted),
            Some(Err(Kept::Protected)) => {
                let message = format!("cannot delete {shown}: it is protected");
                Err(Failed::new(FailureKind::Refused, message).with_hint("take the protection off first"))
            }
            Some(Err(Kept::Newest)) => {
                let message = format!("cannot delete {shown}: it is the newest generation of its volume");
                Err(Failed::new(FailureKind::Refused, message).with_hint("make a newer backup first"))
            }
            Some(Err(Kept::Gone)) | None => {
                Err(Failed::new(FailureKind::NotFound, format!("{shown} was deleted by somebody else")))
            }
        }
    }

    async fn protect(&self, request: v1::ProtectGenerationRequest) -> Result<v1::Generation, Failed> {
        let Entry { generation, .. } = self.0.generation(request.volume, request.selector).await?;
        let protected = request.protected;
        let found = retention::protect(&self.0, key_of(&generation)?, protected, self.0.now_ms()).await?;
        found.ok_or_else(|| {
            let shown = format!("{}:{}", generation.volume_name, generation.number);
            Failed::new(FailureKind::NotFound, format!("{shown} was deleted by somebody else"))
        })
    }
}

/// How many there are in a page.
fn page_of(asked: u32) -> u32 {
    match asked {
        0 => PAGE,
        size => size.min(PAGE),
    }
}

/// Where a page begins: number and name of the last generation of the page before.
fn position_of(token: &str) -> Result<Position, Failed> {
    if token.is_empty() {
        return Ok(Position::default());
    }
    let parsed = token.split_once(' ').and_then(|(number, name)| Some((number.parse().ok()?, name)));
    let (number, volume_name) = parsed
        .filter(|(number, _)| i64::try_from(*number).is_ok())
        .ok_or_else(|| Failed::new(FailureKind::Usage, "the page token is none that this server gave"))?;
    Ok(Position { volume_name: volume_name.to_owned(), number })
}

fn token_of(last: &Deleted) -> String {
    generation_token(&last.entry.generation)
}

/// The token of the page after the one that ends with this generation.
pub(crate) fn generation_token(last: &v1::Generation) -> String {
    format!("{} {}", last.number, last.volume_name)
}

fn key_of(generation: &v1::Generation) -> Result<GenerationKey, Failed> {
    let volume = uuid::Uuid::parse_str(&generation.volume_uuid)
        .map_err(|error| Failed::new(FailureKind::Damaged, format!("a volume's uuid: {error}")))?;
    Ok(GenerationKey { volume, number: generation.number })
}

#[tonic::async_trait]
impl v1::repository_server::Repository for GenerationService {
    type CollectStream = Pin<Box<dyn Stream<Item = Result<v1::CollectEvent, Status>> + Send>>;
    type PruneStream = Pin<Box<dyn Stream<Item = Result<v1::PruneEvent, Status>> + Send>>;
    type GetDamageStream = Pin<Box<dyn Stream<Item = Result<v1::DamagedRange, Status>> + Send>>;
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
        request: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        let v1::ListVolumesRequest { page_size, page_token } = request.into_inner();
        let limit = page_of(page_size);
        // The token is the name of the last volume of the page before.
        let volumes = self.0.catalogue.volumes(&page_token, limit).await.map_err(Failed::from)?;
        let full = u32::try_from(volumes.len()).is_ok_and(|length| length == limit);
        let last = volumes.last().filter(|_| full);
        let next_page_token = last.map(|volume| volume.name.clone()).unwrap_or_default();
        Ok(Response::new(v1::ListVolumesResponse { volumes, next_page_token }))
    }

    async fn list_generations(
        &self,
        request: Request<v1::ListGenerationsRequest>,
    ) -> Result<Response<v1::ListGenerationsResponse>, Status> {
        Ok(Response::new(self.list(request.into_inner()).await?))
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

    async fn undelete_generation(
        &self,
        request: Request<v1::UndeleteGenerationRequest>,
    ) -> Result<Response<v1::Generation>, Status> {
        Ok(Response::new(self.undelete(request.into_inner()).await?))
    }

    async fn prune(&self, request: Request<v1::PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        let prune = Prune::of(&self.0, request.into_inner(), self.0.now_ms(), TimeZone::system()).await?;
        let events = prune::start(Arc::clone(&self.0), prune);
        Ok(Response::new(Box::pin(ReceiverStream::new(events))))
    }

    async fn verify(
        &self,
        request: Request<v1::VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        let plan = verify::Plan::of(&self.0, request.into_inner()).await?;
        let events = verify::start(Arc::clone(&self.0), plan);
        Ok(Response::new(Box::pin(ReceiverStream::new(events))))
    }

    async fn collect(
        &self,
        request: Request<v1::CollectRequest>,
    ) -> Result<Response<Self::CollectStream>, Status> {
        let options = collect::Options::of(&request.into_inner())?;
        let events = collect::start(Arc::clone(&self.0), options);
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

    async fn get_damage(
        &self,
        request: Request<v1::GetDamageRequest>,
    ) -> Result<Response<Self::GetDamageStream>, Status> {
        let v1::GetDamageRequest { volume, selector } = request.into_inner();
        let entrance = self.0.pins.enter().await;
        let generation = self.0.generation(volume, selector).await?.generation;
        let pin = entrance.pin(tree_of(&generation)?);
        let ranges = verify::known(Arc::clone(&self.0), generation, pin);
        Ok(Response::new(Box::pin(ReceiverStream::new(ranges))))
    }
}
