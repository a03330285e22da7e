//! Retention after a run: the server is asked to delete what the job's rules do not keep.

use thinbak_proto::{
    Failed, FailureKind,
    v1::{PruneRequest, PruneSummary, RepositoryAddress, RetentionPolicy, VolumeName, prune_event::Event},
};

use crate::repository_client::connect;

/// Applies a policy to volumes, named as on the server: groups of them stay whole.
pub(super) async fn apply(
    address: &RepositoryAddress,
    policy: RetentionPolicy,
    volumes: Vec<String>,
) -> Result<PruneSummary, Failed> {
    let mut names = volumes.into_iter().map(|name| VolumeName { name, host: String::new() });
    let Some(volume) = names.next() else { return Ok(PruneSummary::default()) };
    let connection = connect(address).await?;
    let request = PruneRequest {
        volume: Some(volume),
        policy: Some(policy),
        others: names.collect(),
        // Of a volume that is not there any more nothing else may go.
        names_only: true,
        ..PruneRequest::default()
    };
    let pruned = async {
        let mut events = connection.repository().prune(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            if let Some(Event::Summary(summary)) = event.event {
                return Ok(summary);
            }
        }
        Err(Failed::new(FailureKind::Failed, "the server's answer has no end"))
    };
    let outcome = pruned.await;
    connection.close().await;
    outcome
}
