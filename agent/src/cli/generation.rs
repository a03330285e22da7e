//! `thinbak generation`.

use thinbak_proto::{
    Failed, FailureKind, is_hidden,
    v1::{
        DeleteGenerationRequest, DeletedGeneration, Generation as Found, GetGenerationRequest,
        ListGenerationsRequest, ListGenerationsResponse, ProtectGenerationRequest, UndeleteGenerationRequest,
        generation_selector::Which,
    },
};

use super::{Context, args::Generation, diff, grammar::GenerationArg, restore::volume_name, stop::Stop};
use crate::{
    output::{Column, human, json},
    repository_client::{self, Held, RepositoryConnection},
};

pub(super) async fn run(context: &Context, command: Generation) -> Result<(), Stop> {
    let connection = repository_client::connect(&context.settings.repository()?).await?;
    let outcome = call(context, &connection, command).await;
    connection.close().await;
    outcome
}

async fn call(context: &Context, connection: &RepositoryConnection, command: Generation) -> Result<(), Stop> {
    match command {
        Generation::List { volume, limit, deleted } => {
            let pages = Pages { connection, volume: volume.as_deref(), limit, deleted };
            list(context, &pages).await
        }
        Generation::Show { generation } => {
            let found = get(connection, &generation).await?;
            show(context, &found)
        }
        Generation::Diff { from, to } => {
            let (from, to) = (hold(connection, &from).await?, hold(connection, &to).await?);
            diff::run(context, connection, &from, &to).await
        }
        Generation::Delete { generations } => delete(context, connection, &generations).await,
        Generation::Undelete { generations } => undelete(context, connection, &generations).await,
        Generation::Protect { generation, off } => {
            let request = ProtectGenerationRequest {
                volume: Some(volume_name(&generation.volume)),
                selector: Some(generation.selector()),
                protected: !off,
            };
            let found = connection.repository().protect_generation(request).await?.into_inner();
            tell(context, if off { "is no longer protected" } else { "is protected" }, &[found])
        }
    }
}

/// A list that comes in pages.
struct Pages<'a> {
    connection: &'a RepositoryConnection,
    volume: Option<&'a str>,
    limit: Option<u32>,
    deleted: bool,
}

impl Pages<'_> {
    /// Calls `take` with one page after the other.
    async fn each(
        &self,
        mut take: impl FnMut(ListGenerationsResponse) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let mut client = self.connection.repository();
        let mut page_token = String::new();
        loop {
            let request = ListGenerationsRequest {
                volume: self.volume.map(volume_name),
                newest: self.limit.unwrap_or_default(),
                deleted: self.deleted,
                page_token,
                ..ListGenerationsRequest::default()
            };
            let mut page = client.list_generations(request).await?.into_inner();
            page_token = page.next_page_token.clone();
            // What pools looked like is shown where it is asked for.
            if self.volume.is_none() {
                page.generations.retain(|generation| !is_hidden(&generation.volume_name));
                let name = |deleted: &DeletedGeneration| {
                    deleted.generation.as_ref().map(|generation| generation.volume_name.clone())
                };
                page.deleted.retain(|deleted| !name(deleted).is_some_and(|name| is_hidden(&name)));
            }
            take(page)?;
            if page_token.is_empty() {
                return Ok(());
            }
        }
    }
}

async fn get(connection: &RepositoryConnection, wanted: &GenerationArg) -> Result<Found, Stop> {
    let request =
        GetGenerationRequest { volume: Some(volume_name(&wanted.volume)), selector: Some(wanted.selector()) };
    Ok(connection.repository().get_generation(request).await?.into_inner())
}

async fn hold(connection: &RepositoryConnection, wanted: &GenerationArg) -> Result<Held, Stop> {
    Ok(connection.hold_one(volume_name(&wanted.volume), wanted.selector()).await?)
}

/// All are looked up first, so that `latest` means what it meant when the command began.
async fn delete(
    context: &Context,
    connection: &RepositoryConnection,
    generations: &[GenerationArg],
) -> Result<(), Stop> {
    let mut chosen = Vec::with_capacity(generations.len());
    for wanted in generations {
        let found = get(connection, wanted).await?;
        if !chosen
            .iter()
            .any(|other: &Found| (&other.volume_uuid, other.number) == (&found.volume_uuid, found.number))
        {
            chosen.push(found);
        }
    }
    let mut deleted = Vec::with_capacity(chosen.len());
    for found in chosen {
        let wanted: GenerationArg = GenerationArg {
            volume: found.volume_name.clone(),
            which: thinbak_proto::v1::generation_selector::Which::Number(found.number),
        };
        let request = DeleteGenerationRequest {
            volume: Some(volume_name(&wanted.volume)),
            selector: Some(wanted.selector()),
        };
        let gone = connection.repository().delete_generation(request).await?.into_inner();
        context.output.note(&format!("{}:{} is deleted", gone.volume_name, gone.number));
        deleted.push(gone);
    }
    if context.output.is_json() {
        return tell(context, "is deleted", &deleted);
    }
    Ok(())
}

async fn undelete(
    context: &Context,
    connection: &RepositoryConnection,
    generations: &[GenerationArg],
) -> Result<(), Stop> {
    let mut back = Vec::new();
    for wanted in generations {
        let Which::Number(number) = wanted.which else {
            let message =
                format!("undelete a generation of {}: it must be named by its number", wanted.volume);
            let hint = format!("`thinbak generation list --deleted {}` shows the numbers", wanted.volume);
            return Err(Failed::new(FailureKind::Usage, message).with_hint(hint).into());
        };
        let request = UndeleteGenerationRequest { volume: Some(volume_name(&wanted.volume)), number };
        let found = connection.repository().undelete_generation(request).await?.into_inner();
        context.output.note(&format!("{}:{} is back", found.volume_name, found.number));
        back.push(found);
    }
    if context.output.is_json() {
        return tell(context, "is back", &back);
    }
    Ok(())
}

fn tell(context: &Context, what: &str, generations: &[Found]) -> Result<(), Stop> {
    if context.output.is_json() {
        let document = match generations {
            [generation] => json::generation(generation),
            all => serde_json::json!({ "generations": all.iter().map(json::generation).collect::<Vec<_>>() }),
        };
        return Ok(context.output.document(&document)?);
    }
    for generation in generations {
        context.output.note(&format!("{}:{} {what}", generation.volume_name, generation.number));
    }
    Ok(())
}

async fn list(context: &Context, pages: &Pages<'_>) -> Result<(), Stop> {
    if context.output.is_json() {
        let mut document = context.output.long_document("generations");
        let printed = pages.each(|page| {
            let visible = page.generations.iter().map(json::generation);
            let deleted = page.deleted.iter().map(json::deleted_generation);
            Ok(visible.chain(deleted).try_for_each(|item| document.item(&item))?)
        });
        printed.await?;
        return Ok(document.end()?);
    }
    let mut rows = Vec::new();
    pages
        .each(|page| {
            rows.extend(page.generations.iter().map(row));
            rows.extend(page.deleted.iter().filter_map(deleted_row));
            Ok(())
        })
        .await?;
    let columns: &[Column] = if pages.deleted { &DELETED_COLUMNS } else { &COLUMNS };
    Ok(context.output.table(columns, rows)?)
}

const COLUMNS: [Column; 8] = [
    Column::Left("VOLUME"),
    Column::Right("GENERATION"),
    Column::Left("CREATED"),
    Column::Right("SIZE"),
    Column::Right("MAPPED"),
    Column::Right("CHANGED"),
    Column::Right("STORED"),
    Column::Left("FLAGS"),
];

fn row(generation: &Found) -> Vec<String> {
    let flags = [(generation.protected, "protected"), (!generation.group.is_empty(), "group")];
    let flags: Vec<_> = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    vec![
        generation.volume_name.clone(),
        generation.number.to_string(),
        human::time(generation.created_at_ms),
        human::bytes(generation.size_bytes),
        human::bytes(generation.mapped_bytes),
        human::bytes(generation.changed_bytes),
        human::bytes(generation.stored_bytes),
        flags.join(","),
    ]
}

const DELETED_COLUMNS: [Column; 6] = [
    Column::Left("VOLUME"),
    Column::Right("GENERATION"),
    Column::Left("CREATED"),
    Column::Left("DELETED"),
    Column::Left("UNDELETE UNTIL"),
    Column::Right("SIZE"),
];

fn deleted_row(deleted: &DeletedGeneration) -> Option<Vec<String>> {
    let generation = deleted.generation.as_ref()?;
    Some(vec![
        generation.volume_name.clone(),
        generation.number.to_string(),
        human::time(generation.created_at_ms),
        human::time(deleted.deleted_at_ms),
        human::time(deleted.undelete_until_ms),
        human::bytes(generation.size_bytes),
    ])
}

fn show(context: &Context, generation: &Found) -> Result<(), Stop> {
    if context.output.is_json() {
        return Ok(context.output.document(&json::generation(generation))?);
    }
    let parent = match generation.parent {
        0 => "none".to_owned(),
        parent => parent.to_string(),
    };
    let mut lines = vec![
        ("volume", generation.volume_name.clone()),
        ("volume uuid", generation.volume_uuid.clone()),
        ("generation", generation.number.to_string()),
        ("created", human::time(generation.created_at_ms)),
        ("size", human::bytes(generation.size_bytes)),
        ("mapped", human::bytes(generation.mapped_bytes)),
        ("changed", human::bytes(generation.changed_bytes)),
        ("new", human::bytes(generation.new_bytes)),
        ("stored", human::bytes(generation.stored_bytes)),
        ("chunk size", human::bytes(generation.chunk_bytes.into())),
        ("parent", parent),
        ("root", json::hex(&generation.root)),
        ("protected", if generation.protected { "yes" } else { "no" }.to_owned()),
    ];
    if !generation.group.is_empty() {
        lines.push(("group", generation.group.clone()));
    }
    if let Some(point) = &generation.point {
        lines.push(("snapshot", point.identity.clone()));
        lines.push(("taken", human::time(point.created_at_ms)));
        lines.push(("pool uuid", point.pool_uuid.clone()));
    }
    for (name, value) in lines {
        context.output.line(&format!("{:<13} {value}", format!("{name}:")))?;
    }
    Ok(())
}
