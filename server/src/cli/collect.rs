//! `thinbak-server collect`.

use std::io::{IsTerminal as _, Write as _};

use thinbak_proto::{Failed, json, v1};
use thinbak_server::{config::Config, routes};
use tonic::Streaming;
use v1::{collect_event::Event, repository_client::RepositoryClient};

use super::{
    arguments::Collect,
    open,
    output::{Output, size},
    place::Address,
};

pub(super) async fn run(collect: &Collect, mut config: Config, output: &Output) -> Result<u8, Failed> {
    let request = v1::CollectRequest {
        dry_run: collect.dry_run,
        threshold: Some(collect.threshold),
        max_extra_space_bytes: collect.max_extra_space,
        max_repack_bytes: collect.max_repack,
        rate_bytes_per_second: collect.rate.unwrap_or_default(),
        grace_ms: collect.grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX)),
    };
    match collect.at.clone().address(&config).await? {
        Address::Server(channel) => {
            let events = RepositoryClient::new(channel).collect(request).await?.into_inner();
            follow(events, collect.dry_run, output).await
        }
        Address::Directory(dir) => {
            let repository = open(&dir, &mut config, collect.dry_run).await?;
            let mut client = RepositoryClient::new(routes(repository.clone()));
            let outcome = match client.collect(request).await {
                Ok(events) => follow(events.into_inner(), collect.dry_run, output).await,
                Err(status) => Err(status.into()),
            };
            repository.close().await;
            outcome
        }
    }
}

async fn follow(
    mut events: Streaming<v1::CollectEvent>,
    dry_run: bool,
    output: &Output,
) -> Result<u8, Failed> {
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Plan(plan)) => output.collect_plan(&plan, dry_run),
            Some(Event::Progress(progress)) => {
                let v1::CollectProgress { done_bytes, total_bytes } = progress;
                output.progress(v1::VerifyProgress { done_bytes, total_bytes });
            }
            Some(Event::Pack(pack)) => output.collect_pack(&pack),
            Some(Event::Summary(summary)) => output.collected(&summary, dry_run),
            None => {}
        }
    }
    Ok(0)
}

impl Output {
    pub(super) fn collect_plan(&self, plan: &v1::CollectPlan, dry_run: bool) {
        if self.json {
            return self.data(json::collect_plan(plan, dry_run));
        }
        self.data(format_args!(
            "to be freed: {} of {} in {} packs: {} in {} packs with nothing in use, {} in {} packs mostly not in use, of \
             which {} are copied, {} small packs are put together; {} not in use stay",
            size(plan.free_bytes),
            size(plan.pack_bytes),
            plan.packs,
            size(plan.dead_pack_bytes),
            plan.dead_packs,
            size(plan.repack_pack_bytes),
            plan.repack_packs,
            size(plan.repack_live_bytes),
            plan.merge_packs,
            size(plan.kept_dead_bytes)
        ));
        if plan.lost_chunks > 0 {
            self.say(format_args!(
                "warning: {} chunks that generations need are not stored; `thinbak-server verify` tells of which",
                plan.lost_chunks
            ));
        }
    }

    pub(super) fn collect_pack(&self, pack: &v1::CollectPack) {
        if self.json {
            return self.data(json::collect_pack(pack));
        }
        if !pack.kept.is_empty() {
            self.say(format_args!("pack {:08x} stays: {}", pack.pack, pack.kept));
        }
    }

    pub(super) fn collected(&self, summary: &v1::CollectSummary, dry_run: bool) {
        if self.json {
            return self.data(json::collect_summary(summary, dry_run));
        }
        if std::io::stderr().is_terminal() {
            let _ = write!(anstream::stderr().lock(), "\r\x1b[K");
        }
        if !dry_run {
            self.data(format_args!(
                "freed: {}; {} packs removed, {} copied, {} packs left for a later run",
                size(u64::try_from(summary.freed_bytes).unwrap_or_default()),
                summary.removed_packs,
                size(summary.moved_bytes),
                summary.kept_packs
            ));
        }
    }
}
