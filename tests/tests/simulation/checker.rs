//! What must be true of the server whatever happened before.

use std::collections::HashSet;

use anyhow::{Result, bail, ensure};
use thinbak_proto::{
    Failed,
    v1::{
        CollectPlan, CollectRequest, ListGenerationsRequest, VerifyRequest, collect_event,
        verify_event::Event,
    },
};

use crate::agent::{Agent, Clients, Heard};

/// Every generation that is listed was backed up, restores to its content and is not damaged; every one that an agent
/// heard of is listed unless its deletion was asked for; none is listed whose deletion was confirmed. Returns how
/// many generations there are, and how many of them no agent was told of.
pub(crate) async fn check(
    clients: &Clients,
    agents: &[Agent],
    manifests: &HashSet<(String, u64)>,
) -> Result<(u64, u64)> {
    let request = ListGenerationsRequest::default();
    let listed = clients.repository().list_generations(request).await?.into_inner().generations;
    let mut unheard = 0;
    for volume in agents.iter().flat_map(|agent| &agent.volumes) {
        let mut last = 0;
        let mine = || listed.iter().filter(|generation| generation.volume_uuid == volume.uuid.to_string());
        for generation in mine() {
            let shown = format!("{}:{}", volume.name, generation.number);
            // Not by the dates: a clock that was set back dates what comes next by itself.
            ensure!(generation.number > last, "{shown} comes after {last}");
            last = generation.number;
            let key = (generation.volume_uuid.clone(), generation.number);
            ensure!(manifests.contains(&key), "{shown} has no manifest: the packs do not know it");
            let image = volume.image_of(generation).map_err(|why| anyhow::anyhow!("{shown}: {why}"))?;
            match clients.compare(generation, &image).await {
                Ok(None) => {}
                Ok(Some(why)) => bail!("{shown} restores to something else: {why}"),
                Err(failed) => bail!("{shown} does not restore: {failed}"),
            }
            ensure!(
                volume.deletions.get(&generation.number) != Some(&Heard::Done),
                "{shown} is there although its deletion was confirmed"
            );
            match volume.heard().find(|(number, _)| *number == generation.number) {
                Some((_, heard)) => ensure!(heard.root == generation.root, "{shown} has another root"),
                None => unheard += 1,
            }
        }
        for (number, _) in volume.heard() {
            ensure!(
                volume.deletions.contains_key(&number)
                    || mine().any(|generation| generation.number == number),
                "{}:{number} is gone: its agent was told that it is committed",
                volume.name
            );
        }
    }
    let mut events = clients.repository().verify(VerifyRequest::default()).await?.into_inner();
    while let Some(event) = events.message().await? {
        if let Some(Event::Damage(damage)) = event.event {
            bail!("damaged: {damage:?}");
        }
    }
    Ok((listed.len() as u64, unheard))
}

/// Frees what nothing needs, without grace or another one than the repository's; returns what was planned.
pub(crate) async fn collect(
    clients: &Clients,
    dry_run: bool,
    grace_ms: Option<u64>,
) -> Result<CollectPlan, Failed> {
    let request = CollectRequest { dry_run, threshold: Some(1.0), grace_ms, ..CollectRequest::default() };
    let mut events = clients.repository().collect(request).await?.into_inner();
    let mut planned = CollectPlan::default();
    while let Some(event) = events.message().await? {
        if let Some(collect_event::Event::Plan(plan)) = event.event {
            planned = plan;
        }
    }
    Ok(planned)
}

/// Nothing that no generation needs stays when nobody does anything any more.
pub(crate) async fn check_nothing_leaks(clients: &Clients) -> Result<()> {
    let plan = collect(clients, true, Some(0)).await?;
    let left = [plan.dead_packs, plan.repack_packs, plan.kept_dead_bytes, plan.lost_chunks];
    ensure!(left == [0; 4], "left after a collection: {plan:?}");
    Ok(())
}
