//! The Access service: tokens and the audit log.

use std::sync::Arc;

use thinbak_proto::{Failed, v1};
use tonic::{Request, Response, Status};

use super::Guarded;
use crate::repository::Repository;

/// Entries of the audit log in one answer at most.
const PAGE: u32 = 1000;

pub(crate) struct AccessService(pub(crate) Arc<Repository>);

#[tonic::async_trait]
impl v1::access_server::Access for Guarded<AccessService> {
    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let admission = self.gate.admit("Access/CreateToken", &request).await?;
        let repository = &self.inner.0;
        let made = repository.tokens.create(repository, request.into_inner()).await;
        let answer = made.map(|(info, token)| {
            let token = token.text().as_str().to_owned();
            Response::new(v1::CreateTokenResponse { info: Some(info), token })
        });
        self.gate.finished(&admission, "", answer.map_err(Status::from)).await
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        self.gate.admit("Access/ListTokens", &request).await?;
        Ok(Response::new(v1::ListTokensResponse { tokens: self.inner.0.tokens.list() }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::TokenInfo>, Status> {
        let admission = self.gate.admit("Access/RevokeToken", &request).await?;
        let repository = &self.inner.0;
        let revoked = repository.tokens.revoke(repository, &request.into_inner().token).await;
        self.gate.finished(&admission, "", revoked.map(Response::new).map_err(Status::from)).await
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        self.gate.admit("Access/ListAudit", &request).await?;
        let v1::ListAuditRequest { since_ms, after, page_size } = request.into_inner();
        let limit = if page_size == 0 { PAGE } else { page_size.min(PAGE) };
        let entries = self.inner.0.catalogue.audit(after, since_ms, limit).await.map_err(Failed::from)?;
        Ok(Response::new(v1::ListAuditResponse { entries }))
    }
}
