//! Adding generations: the Ingest service.
//!
//! One call is one generation, and runs in four steps:
//!
//! 1. **Begin** takes the volume (one session each), checks name, parent and parent root, and opens the map
//!    tree of the parent for editing.
//! 2. **Batches** are checked on blocking threads, some at a time: order, bounds, lengths, and every id
//!    recomputed. New chunks are put into the store; then, in the order of the batches, the entries go into
//!    the tree and the batch is acknowledged.
//! 3. **Commit** closes the tree, walks where it differs from the parent's, and asks the store for every chunk
//!    that the parent did not have. Then the manifest is stored.
//! 4. One transaction of the catalogue makes the generation visible.
//!
//! A session that ends before step 4, however it ends, leaves records that the next one is told are present.

mod batch;
mod begin;
mod commit;
mod session;
#[cfg(test)]
pub(crate) mod tests;

use std::{pin::Pin, sync::Arc};

use futures::{Stream, stream};
use thinbak_proto::v1;
use tonic::{Request, Response, Status, Streaming};

use crate::{access::Caller, repository::Repository};
pub(crate) use batch::Geometry;
use session::Session;
pub(crate) use session::tree_of;

pub(crate) struct IngestService(pub(crate) Arc<Repository>);

#[tonic::async_trait]
impl v1::ingest_server::Ingest for IngestService {
    type BackupStream = Pin<Box<dyn Stream<Item = Result<v1::BackupResponse, Status>> + Send>>;

    async fn backup(
        &self,
        request: Request<Streaming<v1::BackupRequest>>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let caller =
            caller.ok_or_else(|| Status::permission_denied("nobody looked at who makes this call"))?;
        let session = Session::new(Arc::clone(&self.0), caller, request.into_inner());
        let responses = stream::unfold(Some(session), async |session| {
            let mut session = session?;
            match session.next().await {
                Ok(Some(response)) => Some((Ok(response), Some(session))),
                Ok(None) => None,
                Err(failed) => {
                    session.failed();
                    Some((Err(Status::from(failed)), None))
                }
            }
        });
        Ok(Response::new(Box::pin(responses)))
    }
}
