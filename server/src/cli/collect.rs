//! `thinbak-server collect`.

use thinbak_proto::{Failed, v1};
use tonic::service::Routes;
use v1::{collect_event::Event, repository_client::RepositoryClient};

use super::{arguments::Collect, output::Output};

pub(super) async fn run(
    mut client: RepositoryClient<Routes>,
    collect: &Collect,
    output: &Output,
) -> Result<u8, Failed> {
    let request = v1::CollectRequest {
        dry_run: collect.dry_run,
        threshold: Some(collect.threshold),
        max_extra_space_bytes: collect.max_extra_space,
        max_repack_bytes: collect.max_repack,
        rate_bytes_per_second: collect.rate.unwrap_or_default(),
        grace_ms: collect.grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX)),
    };
    let mut events = client.collect(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Plan(plan)) => output.collect_plan(&plan, collect.dry_run),
            Some(Event::Progress(progress)) => {
                output.progress(v1::VerifyProgress {
                    done_bytes: progress.done_bytes,
                    total_bytes: progress.total_bytes,
                });
            }
            Some(Event::Pack(pack)) => output.collect_pack(&pack),
            Some(Event::Summary(summary)) => output.collected(&summary, collect.dry_run),
            None => {}
        }
    }
    Ok(0)
}
