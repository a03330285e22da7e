//! What must be true of the server whatever happened before.

use anyhow::{Result, bail, ensure};
use thinbak_proto::v1::{ListGenerationsRequest, VerifyRequest, verify_event::Event};

use crate::agent::{Agent, Clients, Heard};

/// Every generation that is listed was backed up, restores to its content and is not damaged; every one that an agent
/// heard of is listed unless its deletion was asked for; none is listed whose deletion was confirmed. Returns how
/// many generations there are, and how many of them no agent was told of.
pub(crate) async fn check(clients: &Clients, agents: &[Agent]) -> Result<(u64, u64)> {
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
