//! The catalogue: made anew, copied, brought back.

use std::path::Path;

use serde_json::{Value, json};
use thinbak_proto::{Failed, v1};
use thinbak_server::{ONLY_IN_THE_CATALOGUE, Rebuilt, rebuild_catalogue, restore_catalogue};
use v1::repository_client::RepositoryClient;

use super::{
    DAMAGED,
    output::{Output, size},
    place::Address,
    with_repository,
};

pub(super) async fn rebuild(dir: &Path, output: &Output) -> Result<u8, Failed> {
    let rebuilt = rebuild_catalogue(dir).await?;
    output.rebuilt("rebuild-catalogue", &rebuilt, true);
    Ok(exit_code(&rebuilt))
}

pub(super) async fn restore(dir: &Path, copy: &Path, output: &Output) -> Result<u8, Failed> {
    let rebuilt = restore_catalogue(dir, copy).await?;
    output.rebuilt("restore-catalogue", &rebuilt, false);
    Ok(exit_code(&rebuilt))
}

pub(super) async fn back_up(address: &Address, keep: u32, output: &Output) -> Result<u8, Failed> {
    let request = v1::BackupCatalogueRequest { keep };
    let response = match address {
        Address::Server(channel) => {
            RepositoryClient::new(channel.clone()).backup_catalogue(request).await?.into_inner()
        }
        Address::Directory(dir) => {
            let call = |mut client: RepositoryClient<_>| async move {
                Ok(client.backup_catalogue(request).await?.into_inner())
            };
            with_repository(dir, call).await?
        }
    };
    output.catalogue_copied(&response);
    Ok(0)
}

fn exit_code(rebuilt: &Rebuilt) -> u8 {
    if rebuilt.damaged == 0 { 0 } else { DAMAGED }
}

impl Output {
    fn catalogue_copied(&self, copy: &v1::BackupCatalogueResponse) {
        let v1::BackupCatalogueResponse { path, bytes, removed } = copy;
        if self.json {
            return self.data(json!({
                "message_type": "summary",
                "job": "backup-catalogue",
                "path": path,
                "bytes": bytes,
                "removed": removed,
            }));
        }
        self.data(path);
        self.say(format_args!("copied the catalogue ({}), {removed} older copies removed", size(*bytes)));
    }

    /// What came of it; `anew`: nothing of the catalogue before was used.
    fn rebuilt(&self, job: &str, rebuilt: &Rebuilt, anew: bool) {
        let only: &[_] = if anew { ONLY_IN_THE_CATALOGUE } else { &[] };
        if self.json {
            let damage: Vec<String> = rebuilt.damage.iter().map(ToString::to_string).collect();
            let lost: Vec<Value> =
                only.iter().map(|only| json!({"place": only.place, "what": only.what})).collect();
            return self.data(json!({
                "message_type": "summary",
                "job": job,
                "volumes": rebuilt.volumes,
                "generations": rebuilt.generations,
                "deleted_generations": rebuilt.deleted,
                "added": rebuilt.added,
                "changed": rebuilt.changed,
                "collected": rebuilt.collected,
                "manifests": rebuilt.manifests,
                "tombstones": rebuilt.tombstones,
                "damaged": rebuilt.damaged,
                "damage": damage,
                "access_lost": rebuilt.access_lost,
                "old_catalogue": rebuilt.old,
                "only_in_a_backup": lost,
            }));
        }
        for damage in &rebuilt.damage {
            self.data(format_args!("damaged: {damage}"));
        }
        let unnamed = rebuilt.damaged.saturating_sub(rebuilt.damage.len() as u64);
        if unnamed > 0 {
            self.data(format_args!("damaged: and {unnamed} more"));
        }
        self.data(format_args!(
            "{} volumes, {} generations, {} deleted ones still there (from {} manifests and {} tombstones)",
            rebuilt.volumes, rebuilt.generations, rebuilt.deleted, rebuilt.manifests, rebuilt.tombstones
        ));
        if anew {
            self.say("what only a copy of the catalogue can bring back (restore-catalogue):");
            only.iter().for_each(|only| self.say(format_args!("  {}: {}", only.place, only.what)));
        } else {
            let Rebuilt { added, changed, collected, .. } = rebuilt;
            self.data(format_args!(
                "later than the copy: {added} generations added, {changed} changed, {collected} gone"
            ));
        }
        if let Some(why) = &rebuilt.access_lost {
            self.say(format_args!(
                "tokens and audit log of the catalogue before could not be taken over, so what was revoked after the copy must be revoked again: {why}"
            ));
        }
        if let Some(old) = &rebuilt.old {
            self.say(format_args!("the catalogue before is {}", old.display()));
        }
    }
}
