//! The table, with a real server over real TLS.

use std::{collections::BTreeSet, sync::Arc};

use prost::Message as _;
use prost_types::FileDescriptorSet;
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use thinbak_proto::{
    DESCRIPTOR_SET, Failed,
    remote::{RemoteChannel, Token, connect},
    v1::{self, Scope, ServerAddress},
};
use tokio::{net::TcpListener, task::JoinHandle};
use uuid::Uuid;
use v1::{
    access_client::AccessClient, backup_request::Message as Asked, content_client::ContentClient,
    generation_selector::Which, ingest_client::IngestClient, repository_client::RepositoryClient,
};

use super::rules::{Names, RULES, Rule};
use crate::{Certificates, TlsFiles, ingest::tests::client::Place, make_certificate, serve_over_tls};

const OWN: &str = "h/p/own";
const FOREIGN: &str = "h/q/foreign";
const OWN_UUID: Uuid = Uuid::from_u128(0xa);
const FOREIGN_UUID: Uuid = Uuid::from_u128(0xb);

struct World {
    place: Place,
    address: ServerAddress,
    admin: Token,
    server: JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl World {
    async fn new() -> Self {
        let place = Place::new().await;
        place.back_up_chunk((OWN_UUID, OWN), (0, 1), None).await.unwrap();
        place.back_up_chunk((FOREIGN_UUID, FOREIGN), (0, 2), None).await.unwrap();
        let files = TlsFiles::of_repository(place.repository.dir());
        let fingerprint = make_certificate(&files, &[]).unwrap().to_string();
        let certificates = Certificates::load(files).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let request = request("root", Scope::Admin, "*");
        let (_, admin) = place.repository.tokens.create(&place.repository, request).await.unwrap();
        let repository = Arc::clone(&place.repository);
        let served = serve_over_tls(repository, listener, certificates, std::future::pending());
        let server = tokio::spawn(async move { served.await.unwrap() });
        let address = ServerAddress { url, fingerprint, ..ServerAddress::default() };
        Self { place, address, admin, server }
    }

    async fn token(&self, name: &str, scope: Scope) -> Token {
        let request = request(name, scope, if scope == Scope::Admin { "*" } else { "h/p/*" });
        self.place.repository.tokens.create(&self.place.repository, request).await.unwrap().1
    }

    async fn channel(&self, token: Option<&Token>) -> RemoteChannel {
        let file = self.place.repository.dir().join("shown-token");
        let token_file = match token {
            None => String::new(),
            Some(token) => {
                std::fs::write(&file, token.text().as_str()).unwrap();
                file.display().to_string()
            }
        };
        connect(&ServerAddress { token_file, ..self.address.clone() }).await.unwrap()
    }
}

fn request(name: &str, scope: Scope, volumes: &str) -> v1::CreateTokenRequest {
    let (name, volumes) = (name.to_owned(), vec![volumes.to_owned()]);
    v1::CreateTokenRequest { name, scope: scope.into(), volumes, expires_in_ms: 0 }
}

fn named(volume: &str) -> Option<v1::VolumeName> {
    Some(v1::VolumeName { name: volume.to_owned(), host: String::new() })
}

fn latest() -> Option<v1::GenerationSelector> {
    Some(v1::GenerationSelector { which: Some(Which::Latest(true)) })
}

fn begin(volume: Uuid, name: &str) -> v1::BackupBegin {
    v1::BackupBegin {
        volume_uuid: volume.to_string(),
        volume_name: name.to_owned(),
        size_bytes: 1 << 20,
        ..v1::BackupBegin::default()
    }
}

async fn backup(channel: RemoteChannel, begin: v1::BackupBegin) -> Result<(), Failed> {
    let asked = v1::BackupRequest { message: Some(Asked::Begin(begin)) };
    let mut answers = IngestClient::new(channel).backup(tokio_stream::iter([asked])).await?.into_inner();
    answers.message().await?;
    Ok(())
}

/// Makes one call about a volume, and waits for its first answer.
async fn repository_call(method: &str, channel: RemoteChannel, volume: &str) -> Result<(), Failed> {
    let mut client = RepositoryClient::new(channel);
    let (selector, volume) = (latest(), named(volume));
    match method {
        "Info" => drop(client.info(v1::InfoRequest {}).await?),
        "Stats" => drop(client.stats(v1::StatsRequest {}).await?),
        "ListVolumes" => drop(client.list_volumes(v1::ListVolumesRequest::default()).await?),
        "ListGenerations" => {
            drop(client.list_generations(v1::ListGenerationsRequest::default()).await?);
        }
        "GetGeneration" => drop(client.get_generation(v1::GetGenerationRequest { volume, selector }).await?),
        "GetDamage" => {
            let request = v1::GetDamageRequest { volume, selector };
            client.get_damage(request).await?.into_inner().message().await?;
        }
        "DeleteGeneration" => {
            drop(client.delete_generation(v1::DeleteGenerationRequest { volume, selector }).await?);
        }
        "ProtectGeneration" => {
            let request = v1::ProtectGenerationRequest { volume, selector, protected: false };
            drop(client.protect_generation(request).await?);
        }
        "UndeleteGeneration" => {
            drop(client.undelete_generation(v1::UndeleteGenerationRequest { volume, number: 1 }).await?);
        }
        "Prune" => {
            let policy = Some(v1::RetentionPolicy { last: 1, ..v1::RetentionPolicy::default() });
            let request = v1::PruneRequest { volume, policy, dry_run: true, ..v1::PruneRequest::default() };
            client.prune(request).await?.into_inner().message().await?;
        }
        "Collect" => {
            let request = v1::CollectRequest { dry_run: true, ..v1::CollectRequest::default() };
            client.collect(request).await?.into_inner().message().await?;
        }
        "BackupCatalogue" => drop(client.backup_catalogue(v1::BackupCatalogueRequest { keep: 1 }).await?),
        "Verify" => {
            let request = v1::VerifyRequest { volume, ..v1::VerifyRequest::default() };
            client.verify(request).await?.into_inner().message().await?;
        }
        other => panic!("{other} is not tried"),
    }
    Ok(())
}

async fn try_call(call: &str, channel: RemoteChannel, volume: &str) -> Result<(), Failed> {
    let mut content = ContentClient::new(channel.clone());
    let mut access = AccessClient::new(channel.clone());
    match call.split_once('/').unwrap() {
        ("Repository", method) => repository_call(method, channel, volume).await?,
        // A new volume: nothing else is under way for it.
        ("Ingest", "Backup") => {
            let uuid = Uuid::new_v4();
            backup(channel, begin(uuid, &format!("{volume}-{}", uuid.simple()))).await?;
        }
        ("Content", "GetNodes") => drop(content.get_nodes(v1::GetNodesRequest::default()).await?),
        ("Content", "GetChunks") => drop(content.get_chunks(v1::GetChunksRequest::default()).await?),
        ("Content", "Hold") => {
            let selectors = latest().into_iter().collect();
            let request = v1::HoldRequest { volume: named(volume), selectors, ranges: Vec::new() };
            content.hold(request).await?.into_inner().message().await?;
        }
        ("Access", "CreateToken") => {
            let name = Uuid::new_v4().to_string();
            drop(access.create_token(request(&name, Scope::Backup, "*")).await?);
        }
        ("Access", "ListTokens") => drop(access.list_tokens(v1::ListTokensRequest {}).await?),
        ("Access", "RevokeToken") => {
            let made = access.create_token(request(&Uuid::new_v4().to_string(), Scope::Backup, "*")).await;
            let token = made.map_or_else(|_| "none".to_owned(), |made| made.into_inner().info.unwrap().id);
            drop(access.revoke_token(v1::RevokeTokenRequest { token }).await?);
        }
        ("Access", "ListAudit") => drop(access.list_audit(v1::ListAuditRequest::default()).await?),
        other => panic!("{other:?} is not tried"),
    }
    Ok(())
}

/// The exit code that a call must have; `None`: whatever else, but it is let in.
fn expected(rule: &Rule, scope: Scope, own: bool) -> Option<u8> {
    if scope == Scope::Admin {
        return None;
    }
    if !rule.scopes.contains(&scope) {
        return Some(12);
    }
    match rule.names {
        Names::Nothing | Names::Lists => Some(0),
        Names::Field(_) => Some(if own { 0 } else { 10 }),
        Names::Begin => Some(if own { 0 } else { 12 }),
    }
}

#[tokio::test]
async fn every_call_by_every_scope_on_own_and_foreign_volumes() {
    let world = World::new().await;
    for scope in [Scope::Backup, Scope::Restore, Scope::Replicate, Scope::Admin] {
        let token = world.token(scope.as_str_name(), scope).await;
        let channel = world.channel(Some(&token)).await;
        for rule in RULES {
            // Nobody is told whether a volume that is not covered is there.
            for (volume, own) in [(OWN, true), (FOREIGN, false), ("h/q/nowhere", false)] {
                let outcome = try_call(rule.call, channel.clone(), volume).await;
                let code = outcome.as_ref().err().map_or(0, Failed::exit_code);
                match expected(rule, scope, own) {
                    Some(expected) => {
                        assert_eq!(code, expected, "{} by {scope:?} on {volume}: {outcome:?}", rule.call);
                    }
                    None => assert_ne!(code, 12, "{} by an admin on {volume}: {outcome:?}", rule.call),
                }
            }
        }
    }
    for rule in RULES {
        let nobody = world.channel(None).await;
        let outcome = try_call(rule.call, nobody, OWN).await;
        assert_eq!(outcome.unwrap_err().exit_code(), 12, "{} without a token", rule.call);
    }
}

#[test]
fn every_call_of_every_service_of_a_server_is_in_the_table() {
    let descriptors = FileDescriptorSet::decode(DESCRIPTOR_SET).unwrap();
    let mut served = BTreeSet::new();
    for file in descriptors.file.iter().filter(|file| !file.name().ends_with("agent.proto")) {
        for service in &file.service {
            for method in &service.method {
                let call = format!("{}/{}", service.name(), method.name());
                let rule = RULES.iter().find(|rule| rule.call == call).unwrap_or_else(|| panic!("{call}"));
                if let Names::Field(field) = rule.names {
                    let input = method.input_type().rsplit('.').next().unwrap();
                    let message = file.message_type.iter().find(|message| message.name() == input).unwrap();
                    assert!(message.field.iter().any(|found| found.name() == field), "{call}: {field}");
                }
                served.insert(call);
            }
        }
    }
    assert_eq!(served.len(), RULES.len(), "the table has calls that are none, or one twice");
}

#[tokio::test]
async fn tokens_that_are_cut_foreign_expired_or_revoked_open_nothing() {
    let world = World::new().await;
    let repository = &world.place.repository;
    let asks = async |token: &Token| {
        let channel = world.channel(Some(token)).await;
        try_call("Repository/Info", channel, OWN).await.err().map_or(0, |failed| failed.exit_code())
    };
    assert_eq!(asks(&world.admin).await, 0);
    assert_eq!(asks(&Token::draw()).await, 12);
    // The id of one and the secret of another.
    let other = Token::draw();
    let mixed = format!("tbk_{}_{}", world.admin.id(), other.secret());
    assert_eq!(asks(&Token::parse(&mixed).unwrap()).await, 12);
    let lasts = v1::CreateTokenRequest { expires_in_ms: 1, ..request("short", Scope::Restore, "*") };
    let (info, short) = repository.tokens.create(repository, lasts).await.unwrap();
    while repository.now_ms() < info.expires_at_ms {
        tokio::task::yield_now().await;
    }
    assert_eq!(asks(&short).await, 12);
    let token = world.token("gone", Scope::Restore).await;
    assert_eq!(asks(&token).await, 0);
    repository.tokens.revoke(repository, "gone").await.unwrap();
    assert_eq!(asks(&token).await, 12);
    // A token that is cut is not even sent.
    let cut = repository.dir().join("cut");
    std::fs::write(&cut, &token.text()[..40]).unwrap();
    let address = ServerAddress { token_file: cut.display().to_string(), ..world.address.clone() };
    assert_eq!(connect(&address).await.err().unwrap().exit_code(), 2);
}

#[tokio::test]
async fn what_runs_with_a_token_ends_when_it_is_revoked() {
    let world = World::new().await;
    let token = world.token("restore", Scope::Restore).await;
    let selectors = latest().into_iter().collect();
    let request = v1::HoldRequest { volume: named(OWN), selectors, ranges: Vec::new() };
    let mut client = ContentClient::new(world.channel(Some(&token)).await);
    let mut held = client.hold(request).await.unwrap().into_inner();
    assert_eq!(held.message().await.unwrap().unwrap().held.len(), 1);
    let mut admin = AccessClient::new(world.channel(Some(&world.admin)).await);
    let revoke = v1::RevokeTokenRequest { token: "restore".to_owned() };
    let revoked = admin.revoke_token(revoke.clone()).await.unwrap().into_inner();
    let ended = Failed::from(held.message().await.unwrap_err());
    assert!(ended.exit_code() == 12 && ended.message.contains("revoked"), "{ended:?}");
    assert_eq!(admin.revoke_token(revoke).await.unwrap().into_inner(), revoked, "it stays as it is");
}

#[tokio::test]
async fn a_backup_token_takes_no_volume_and_no_name_from_others() {
    let world = World::new().await;
    let token = world.token("agent", Scope::Backup).await;
    let channel = world.channel(Some(&token)).await;
    let foreign_uuid = begin(FOREIGN_UUID, "h/p/stolen");
    assert_eq!(backup(channel.clone(), foreign_uuid).await.unwrap_err().exit_code(), 12);
    let adopted = v1::BackupBegin { adopt: true, ..begin(Uuid::new_v4(), OWN) };
    assert_eq!(backup(channel.clone(), adopted).await.unwrap_err().exit_code(), 12);
    backup(channel, begin(OWN_UUID, OWN)).await.unwrap();
}

#[tokio::test]
async fn lists_and_their_page_tokens_name_covered_volumes_only() {
    let world = World::new().await;
    world.place.back_up_chunk((Uuid::from_u128(0xc), "h/a"), (0, 3), None).await.unwrap();
    world.place.back_up_chunk((Uuid::from_u128(0xd), "h/p/second"), (0, 4), None).await.unwrap();
    let token = world.token("restore", Scope::Restore).await;
    let mut client = RepositoryClient::new(world.channel(Some(&token)).await);
    let (mut names, mut tokens, mut page_token) = (Vec::new(), Vec::new(), String::new());
    loop {
        let request = v1::ListVolumesRequest { page_size: 1, page_token };
        let page = client.list_volumes(request).await.unwrap().into_inner();
        names.extend(page.volumes.into_iter().map(|volume| volume.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        tokens.push(page_token.clone());
    }
    assert_eq!(names, [OWN, "h/p/second"]);
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListGenerationsRequest { page_size: 1, page_token, ..Default::default() };
        let page = client.list_generations(request).await.unwrap().into_inner();
        listed.extend(page.generations.into_iter().map(|generation| generation.volume_name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        tokens.push(page_token.clone());
    }
    assert_eq!(listed, [OWN, "h/p/second"]);
    assert!(tokens.iter().all(|token| token.contains("h/p/")), "{tokens:?}");
}

#[tokio::test]
async fn what_was_done_and_refused_is_written_down_and_cannot_be_changed() {
    let world = World::new().await;
    let token = world.token("agent", Scope::Backup).await;
    let channel = world.channel(Some(&token)).await;
    try_call("Repository/DeleteGeneration", channel, OWN).await.unwrap_err();
    let admin = world.channel(Some(&world.admin)).await;
    try_call("Repository/DeleteGeneration", admin.clone(), OWN).await.unwrap_err();
    let mut access = AccessClient::new(admin);
    let log = access.list_audit(v1::ListAuditRequest::default()).await.unwrap().into_inner().entries;
    let told = |name: &str, what: &str| {
        log.iter().any(|entry| {
            entry.token == name && entry.call == "Repository/DeleteGeneration" && entry.outcome.contains(what)
        })
    };
    assert!(told("agent", "is for backup") && told("root", "newest generation"), "{log:?}");
    assert!(log.iter().all(|entry| entry.peer.starts_with("127.0.0.1:")));
    let options = SqliteConnectOptions::new().filename(world.place.repository.dir().join("catalogue.sqlite"));
    let mut catalogue = SqliteConnection::connect_with(&options).await.unwrap();
    for change in ["DELETE FROM audit", "UPDATE audit SET token = 'other'", "DELETE FROM tokens"] {
        sqlx::query(change).execute(&mut catalogue).await.unwrap_err();
    }
}
