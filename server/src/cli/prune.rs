//! `thinbak-server prune`: the policies of the configuration, applied to a repository that no server has open.

use std::path::Path;

use thinbak_proto::{Failed, v1};
use thinbak_server::{config::Config, routes};
use tonic::service::Routes;
use v1::{prune_event::Event, repository_client::RepositoryClient};

use super::{open, output::Output};

pub(super) async fn run(
    dir: &Path,
    mut config: Config,
    dry_run: bool,
    output: &Output,
) -> Result<u8, Failed> {
    let repository = open(dir, &mut config, dry_run).await?;
    let outcome = follow(RepositoryClient::new(routes(repository.clone())), dry_run, output).await;
    repository.close().await;
    outcome
}

async fn follow(mut client: RepositoryClient<Routes>, dry_run: bool, output: &Output) -> Result<u8, Failed> {
    let request = v1::PruneRequest { dry_run, stored_policies: true, ..v1::PruneRequest::default() };
    let mut events = client.prune(request).await?.into_inner();
    let mut decisions = Vec::new();
    let outcome = loop {
        match events.message().await {
            Ok(Some(event)) => match event.event {
                Some(Event::Decision(decision)) if output.json => output.decision(&decision),
                Some(Event::Decision(decision)) => decisions.push(decision),
                Some(Event::Summary(summary)) => break Ok(Some(summary)),
                None => {}
            },
            Ok(None) => break Ok(None),
            Err(status) => break Err(Failed::from(status)),
        }
    };
    // What was done before a failure is told as well.
    if !decisions.is_empty() {
        output.decisions(&decisions);
    }
    if let Some(summary) = outcome? {
        output.pruned(&summary, dry_run);
    }
    Ok(0)
}
