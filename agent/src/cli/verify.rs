//! `thinbak verify`.

use thinbak_proto::v1::{GenerationSelector, VerifyRequest, verify_event::Event};

use super::{
    Context,
    args::Verify,
    jobs::going_on,
    restore::volume_name,
    stop::{DAMAGED, Stop},
};
use crate::{
    output::{human, json},
    repository_client::{self, RepositoryConnection},
};

pub(super) async fn run(context: &Context, verify: Verify) -> Result<(), Stop> {
    let connection = repository_client::connect(&context.settings.repository()?).await?;
    let outcome = follow(context, &connection, verify).await;
    connection.close().await;
    outcome
}

async fn follow(context: &Context, connection: &RepositoryConnection, verify: Verify) -> Result<(), Stop> {
    let output = context.output;
    let request = VerifyRequest {
        volume: verify.what.as_ref().map(|what| volume_name(&what.volume)),
        selector: verify
            .what
            .and_then(|what| what.which)
            .map(|which| GenerationSelector { which: Some(which) }),
        sample: verify.sample.unwrap_or_default(),
        older_than_ms: verify.older_than.unwrap_or_default(),
        bytes_per_second: verify.rate.unwrap_or_default(),
    };
    let mut events = connection.repository().verify(request).await?.into_inner();
    let mut bars = output.progress();
    let mut damaged = 0;
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Progress(progress)) if output.is_json() => {
                going_on(output.json_line(&serde_json::json!({
                    "message_type": "status",
                    "job": "verify",
                    "done_bytes": progress.done_bytes,
                    "total_bytes": progress.total_bytes,
                })))?
            }
            Some(Event::Progress(progress)) => {
                bars.update("verify", "", progress.done_bytes, progress.total_bytes);
            }
            Some(Event::Record(record)) => {
                damaged += 1;
                if output.is_json() {
                    going_on(output.json_line(&json::damaged_record(&record)))?;
                } else {
                    bars.clear();
                    going_on(output.line(&human::damaged_record(&record)))?;
                }
            }
            Some(Event::Pack(pack)) => {
                damaged += 1;
                if output.is_json() {
                    going_on(output.json_line(&json::damaged_pack(&pack)))?;
                } else {
                    bars.clear();
                    going_on(output.line(&format!("damaged pack {:08x}: {}", pack.pack, pack.reason)))?;
                }
            }
            Some(Event::Damage(damage)) => {
                damaged += 1;
                if output.is_json() {
                    going_on(output.json_line(&json::verify_damage(&damage)))?;
                } else {
                    bars.clear();
                    going_on(output.line(&format!(
                        "damage: {}:{}: {} bytes at {}: {}",
                        damage.volume_name,
                        damage.generation,
                        damage.length_bytes,
                        damage.offset_bytes,
                        damage.reason
                    )))?;
                }
            }
            Some(Event::Summary(summary)) => {
                damaged = damaged.max(summary.damaged);
                bars.clear();
                if output.is_json() {
                    going_on(output.json_line(&json::verify_summary(&summary)))?;
                } else {
                    going_on(output.line(&format!(
                        "generations: {}; {} chunks ({}) and {} map nodes read back in {}; damaged: {} records, {} packs \
                         outside of records, {} generations",
                        summary.generations,
                        summary.chunks_checked,
                        human::bytes(summary.bytes_checked),
                        summary.map_nodes_checked,
                        human::seconds(summary.seconds),
                        summary.damaged_records,
                        summary.damaged_packs,
                        summary.damaged_generations
                    )))?;
                }
            }
            None => {}
        }
    }
    if damaged == 0 { Ok(()) } else { Err(Stop::Exit(DAMAGED)) }
}
