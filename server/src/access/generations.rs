//! The Repository service, guarded.

use std::pin::Pin;

use futures::Stream;
use thinbak_proto::v1::{self, repository_server::Repository as Service};
use tonic::{Request, Response, Status};

use super::{Caller, Guarded};
use crate::service::{GenerationService, PAGE, generation_token};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The volume that a request names, for the audit log.
fn shown(volume: Option<&v1::VolumeName>) -> String {
    volume.map(|volume| volume.name.clone()).unwrap_or_default()
}

impl Guarded<GenerationService> {
    /// Of the volumes after `token` a page of those that are covered. The token of the next page names none that is not.
    async fn covered_volumes(
        &self,
        caller: &Caller,
        request: v1::ListVolumesRequest,
    ) -> Result<v1::ListVolumesResponse, Status> {
        let limit = page_len(request.page_size);
        let (mut volumes, mut page_token) = (Vec::new(), request.page_token);
        loop {
            let asked = v1::ListVolumesRequest { page_size: 0, page_token };
            let page = self.inner.list_volumes(Request::new(asked)).await?.into_inner();
            volumes.extend(page.volumes.into_iter().filter(|volume| caller.covers(&volume.name)));
            if volumes.len() >= limit || page.next_page_token.is_empty() {
                let whole = volumes.len() <= limit && page.next_page_token.is_empty();
                volumes.truncate(limit);
                let last = volumes.last().filter(|_| !whole);
                let next_page_token = last.map(|last| last.name.clone()).unwrap_or_default();
                return Ok(v1::ListVolumesResponse { volumes, next_page_token });
            }
            page_token = page.next_page_token;
        }
    }

    /// The same of generations.
    async fn covered_generations(
        &self,
        caller: &Caller,
        request: v1::ListGenerationsRequest,
    ) -> Result<v1::ListGenerationsResponse, Status> {
        let limit = page_len(request.page_size);
        let (mut all, mut page_token) = (v1::ListGenerationsResponse::default(), request.page_token.clone());
        let name_of = |deleted: &v1::DeletedGeneration| {
            deleted.generation.as_ref().map(|generation| generation.volume_name.clone()).unwrap_or_default()
        };
        loop {
            let asked = v1::ListGenerationsRequest { page_size: 0, page_token, ..request.clone() };
            let page = self.inner.list_generations(Request::new(asked)).await?.into_inner();
            let covered = page.generations.into_iter().filter(|found| caller.covers(&found.volume_name));
            all.generations.extend(covered);
            all.deleted.extend(page.deleted.into_iter().filter(|found| caller.covers(&name_of(found))));
            let found = all.generations.len().max(all.deleted.len());
            if found >= limit || page.next_page_token.is_empty() {
                let whole = found <= limit && page.next_page_token.is_empty();
                all.generations.truncate(limit);
                all.deleted.truncate(limit);
                let deleted = all.deleted.last().and_then(|last| last.generation.as_ref());
                let last = all.generations.last().or(deleted).filter(|_| !whole);
                all.next_page_token = last.map(generation_token).unwrap_or_default();
                return Ok(all);
            }
            page_token = page.next_page_token;
        }
    }
}

fn page_len(asked: u32) -> usize {
    let limit = if asked == 0 { PAGE } else { asked.min(PAGE) };
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[tonic::async_trait]
impl Service for Guarded<GenerationService> {
    type CollectStream = Answers<v1::CollectEvent>;
    type PruneStream = Answers<v1::PruneEvent>;
    type GetDamageStream = Answers<v1::DamagedRange>;
    type VerifyStream = Answers<v1::VerifyEvent>;

    async fn info(&self, request: Request<v1::InfoRequest>) -> Result<Response<v1::InfoResponse>, Status> {
        self.gate.admit("Repository/Info", &request).await?;
        self.inner.info(request).await
    }

    async fn stats(&self, request: Request<v1::StatsRequest>) -> Result<Response<v1::StatsResponse>, Status> {
        self.gate.admit("Repository/Stats", &request).await?;
        Service::stats(&self.inner, request).await
    }

    async fn list_volumes(
        &self,
        request: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        let admission = self.gate.admit("Repository/ListVolumes", &request).await?;
        if admission.caller.is_admin() {
            return self.inner.list_volumes(request).await;
        }
        Ok(Response::new(self.covered_volumes(&admission.caller, request.into_inner()).await?))
    }

    async fn list_generations(
        &self,
        mut request: Request<v1::ListGenerationsRequest>,
    ) -> Result<Response<v1::ListGenerationsResponse>, Status> {
        let admission = self.gate.admit("Repository/ListGenerations", &request).await?;
        if admission.caller.is_admin() {
            return self.inner.list_generations(request).await;
        }
        if let Some(volume) = request.get_mut().volume.take() {
            request.get_mut().volume = admission.caller.narrow(Some(volume))?;
        }
        Ok(Response::new(self.covered_generations(&admission.caller, request.into_inner()).await?))
    }

    async fn get_generation(
        &self,
        mut request: Request<v1::GetGenerationRequest>,
    ) -> Result<Response<v1::Generation>, Status> {
        let admission = self.gate.admit("Repository/GetGeneration", &request).await?;
        request.get_mut().volume = admission.caller.narrow(request.get_mut().volume.take())?;
        self.inner.get_generation(request).await
    }

    async fn get_damage(
        &self,
        mut request: Request<v1::GetDamageRequest>,
    ) -> Result<Response<Self::GetDamageStream>, Status> {
        let admission = self.gate.admit("Repository/GetDamage", &request).await?;
        request.get_mut().volume = admission.caller.narrow(request.get_mut().volume.take())?;
        let answer = self.inner.get_damage(request).await?;
        Ok(self.gate.watched(admission, answer))
    }

    async fn delete_generation(
        &self,
        request: Request<v1::DeleteGenerationRequest>,
    ) -> Result<Response<v1::Generation>, Status> {
        let admission = self.gate.admit("Repository/DeleteGeneration", &request).await?;
        let volume = shown(request.get_ref().volume.as_ref());
        let answer = self.inner.delete_generation(request).await;
        self.gate.finished(&admission, &volume, answer).await
    }

    async fn protect_generation(
        &self,
        request: Request<v1::ProtectGenerationRequest>,
    ) -> Result<Response<v1::Generation>, Status> {
        let admission = self.gate.admit("Repository/ProtectGeneration", &request).await?;
        let volume = shown(request.get_ref().volume.as_ref());
        let answer = self.inner.protect_generation(request).await;
        self.gate.finished(&admission, &volume, answer).await
    }

    async fn undelete_generation(
        &self,
        request: Request<v1::UndeleteGenerationRequest>,
    ) -> Result<Response<v1::Generation>, Status> {
        let admission = self.gate.admit("Repository/UndeleteGeneration", &request).await?;
        let volume = shown(request.get_ref().volume.as_ref());
        let answer = self.inner.undelete_generation(request).await;
        self.gate.finished(&admission, &volume, answer).await
    }

    async fn prune(&self, request: Request<v1::PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        let admission = self.gate.admit("Repository/Prune", &request).await?;
        self.gate.note(&admission, &shown(request.get_ref().volume.as_ref()), "begun").await;
        let answer = self.inner.prune(request).await?;
        Ok(self.gate.watched(admission, answer))
    }

    async fn verify(
        &self,
        request: Request<v1::VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        let admission = self.gate.admit("Repository/Verify", &request).await?;
        self.gate.note(&admission, &shown(request.get_ref().volume.as_ref()), "begun").await;
        let answer = self.inner.verify(request).await?;
        Ok(self.gate.watched(admission, answer))
    }

    async fn collect(
        &self,
        request: Request<v1::CollectRequest>,
    ) -> Result<Response<Self::CollectStream>, Status> {
        let admission = self.gate.admit("Repository/Collect", &request).await?;
        self.gate.note(&admission, "", "begun").await;
        let answer = self.inner.collect(request).await?;
        Ok(self.gate.watched(admission, answer))
    }

    async fn backup_catalogue(
        &self,
        request: Request<v1::BackupCatalogueRequest>,
    ) -> Result<Response<v1::BackupCatalogueResponse>, Status> {
        let admission = self.gate.admit("Repository/BackupCatalogue", &request).await?;
        let answer = self.inner.backup_catalogue(request).await;
        self.gate.finished(&admission, "", answer).await
    }
}
