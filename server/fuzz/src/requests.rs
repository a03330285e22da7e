//! Calls of any content on a repository's services.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use thinbak_proto::{ChunkId, Failed, FailureKind, v1};
use thinbak_server::{
    Clock, Environment, InitOptions, Random, Repository, fuzzing::Input, testing::MemoryMedium,
};
use tokio::runtime::Runtime;
use tonic::{body::Body, codegen::http, service::Routes};
use tower::ServiceExt as _;
use v1::{
    backup_request::Message as Asked, backup_response::Message as Answer, ingest_client::IngestClient,
    map_item::Entry, repository_client::RepositoryClient,
};

const CHUNK: u32 = 4096;
/// A repository is given up after so many inputs: its packs are in memory.
const INPUTS: u32 = 400;
/// Messages of a session at most.
const MAX_MESSAGES: u8 = 16;
/// Answers of a call that are looked at.
const MAX_ANSWER: usize = 1 << 20;

struct World {
    runtime: Runtime,
    repository: Arc<Repository>,
    routes: Routes,
    inputs: u32,
    /// `/package.Service/Method` of everything there is.
    methods: Vec<String>,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let dir = crate::scratch();
        let time = AtomicU64::new(1 << 40);
        let clock = Clock::new(move || time.fetch_add(1000, Ordering::Relaxed));
        let environment =
            Environment::new(clock, Random::new(|| 7)).with_packs_in(Arc::new(MemoryMedium::default()));
        let repository = runtime.block_on(async {
            Repository::init(dir.path(), InitOptions { chunk_bytes: CHUNK }).await.expect("a repository");
            Repository::open_in(dir.path(), environment).await.expect("the same")
        });
        let routes = thinbak_server::routes(Arc::clone(&repository));
        Self { runtime, repository, routes, inputs: 0, methods: methods(), _dir: dir }
    }
}

fn methods() -> Vec<String> {
    let set =
        prost_types::FileDescriptorSet::decode(thinbak_proto::DESCRIPTOR_SET).expect("our own description");
    let mut found = Vec::new();
    for file in set.file.iter().filter(|file| file.name().ends_with("repository.proto")) {
        for service in &file.service {
            for method in &service.method {
                found.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    found
}

/// `[how] ...`: a backup session of structured messages, or frames of any bytes to any method.
pub fn requests(data: &[u8]) {
    thread_local!(static WORLD: RefCell<Option<World>> = const { RefCell::new(None) });
    WORLD.with_borrow_mut(|world| {
        if world.as_ref().is_some_and(|world| world.inputs >= INPUTS)
            && let Some(old) = world.take()
        {
            old.runtime.block_on(old.repository.close());
        }
        let world = world.get_or_insert_with(World::new);
        world.inputs += 1;
        let mut input = Input::new(data);
        if input.byte().is_multiple_of(4) {
            world.runtime.block_on(frames(world, &mut input));
        } else {
            world.runtime.block_on(session(world, &mut input));
        }
    });
}

/// `[method] ([lie] [len] bytes)*`: gRPC frames, some of which lie about their length.
async fn frames(world: &World, input: &mut Input<'_>) {
    let Some(method) = world.methods.get(usize::from(input.byte()) % world.methods.len()) else { return };
    let mut body = Vec::new();
    while !input.is_empty() {
        let (lie, len) = (input.byte(), usize::from(input.u16()) % 1024);
        let message = input.bytes(len);
        let said = if lie & 1 == 0 { message.len() as u32 } else { input.u32() };
        body.push(u8::from(lie & 6 == 6));
        body.extend_from_slice(&said.to_be_bytes());
        body.extend_from_slice(message);
    }
    let request = http::Request::post(method.as_str())
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Full::new(Bytes::from(body))))
        .expect("a request");
    let response = world.routes.clone().prepare().oneshot(request).await.expect("a service that never fails");
    let mut answer = response.into_body();
    let mut seen = 0;
    while let Some(Ok(frame)) = answer.frame().await {
        seen += frame.data_ref().map_or(0, |data| data.len());
        if seen > MAX_ANSWER {
            break;
        }
    }
}

/// What the model says that a chunk of the volume holds.
type Model = BTreeMap<u64, Entry>;

/// `[begin] [message]*`: what is refused is refused with a reason, and what is committed can be read.
async fn session(world: &World, input: &mut Input<'_>) {
    let mut generations = RepositoryClient::new(world.routes.clone());
    let volume = input.byte() % 4;
    let begin = begin(&mut generations, volume, input).await;
    let size = begin.size_bytes;
    let mut messages = vec![Asked::Begin(begin)];
    let mut next = 0u64;
    for _ in 0..input.byte() % (MAX_MESSAGES + 1) {
        messages.push(message(size, &mut next, input));
    }
    if input.byte() % 4 != 0 {
        messages.push(Asked::Commit(v1::BackupCommit {}));
    }
    let named = named(&messages);
    let requests = messages.into_iter().map(|message| v1::BackupRequest { message: Some(message) });
    let mut client = IngestClient::new(world.routes.clone());
    let mut answers = match client.backup(futures::stream::iter(requests)).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return refused(status),
    };
    loop {
        match answers.message().await {
            Ok(Some(v1::BackupResponse { message: Some(Answer::Committed(generation)) })) => {
                committed(&mut generations, &generation).await;
                assert!(generation.mapped_bytes <= generation.size_bytes, "{generation:?}, {named:?}");
            }
            Ok(Some(answer)) => assert!(answer.message.is_some()),
            Ok(None) => return,
            Err(status) => return refused(status),
        }
    }
}

fn named(messages: &[Asked]) -> Model {
    let mut model = Model::new();
    for message in messages {
        if let Asked::Batch(batch) = message {
            model.extend(batch.items.iter().filter_map(|item| Some((item.chunk, item.entry.clone()?))));
        }
    }
    model
}

fn refused(status: tonic::Status) {
    assert!(!status.details().is_empty(), "a failure without kind: {status:?}");
    let failed = Failed::from(status);
    assert!(!failed.message.is_empty());
    assert_ne!(failed.kind, FailureKind::Failed, "a client's fault is told as the server's: {failed:?}");
}

async fn committed(client: &mut RepositoryClient<Routes>, generation: &v1::Generation) {
    let name = v1::VolumeName { name: generation.volume_name.clone(), host: String::new() };
    let which = v1::generation_selector::Which::Number(generation.number);
    let request = v1::VerifyRequest {
        volume: Some(name),
        selector: Some(v1::GenerationSelector { which: Some(which) }),
        ..Default::default()
    };
    let mut events = client.verify(request).await.expect("verifying").into_inner();
    while let Some(event) = events.message().await.expect("verifying") {
        if let Some(v1::verify_event::Event::Damage(damage)) = event.event {
            panic!("a generation was committed that is damaged: {damage:?}");
        }
    }
}

async fn begin(client: &mut RepositoryClient<Routes>, volume: u8, input: &mut Input<'_>) -> v1::BackupBegin {
    let how = input.byte();
    let name = format!("h/p/v{volume}");
    let mut begin = v1::BackupBegin {
        volume_uuid: format!("00000000-0000-4000-8000-0000000000{volume:02x}"),
        volume_name: name.clone(),
        adopt: how & 1 != 0,
        size_bytes: if how & 2 != 0 { input.magnitude() } else { (1 + input.magnitude() % (1 << 40)) * 512 },
        ..Default::default()
    };
    if how & 4 != 0 {
        let request = v1::GetGenerationRequest {
            volume: Some(v1::VolumeName { name, host: String::new() }),
            selector: Some(v1::GenerationSelector {
                which: Some(v1::generation_selector::Which::Latest(true)),
            }),
        };
        if let Ok(latest) = client.get_generation(request).await {
            let latest = latest.into_inner();
            (begin.parent, begin.parent_root) = (latest.number, latest.root);
        }
    }
    if how & 8 != 0 {
        begin.parent = input.u64();
        begin.parent_root = Bytes::copy_from_slice(input.bytes(usize::from(how >> 3)));
    }
    if how & 16 != 0 {
        let len = usize::from(input.byte());
        begin.volume_name = String::from_utf8_lossy(input.bytes(len)).into_owned();
    }
    if how & 32 != 0 {
        begin.volume_uuid = String::from_utf8_lossy(input.bytes(36)).into_owned();
    }
    begin
}

fn message(size: u64, next: &mut u64, input: &mut Input<'_>) -> Asked {
    match input.byte() % 16 {
        0 => Asked::Query(v1::BackupQuery { ids: ids(input) }),
        1 => match v1::BackupRequest::decode(input.bytes(64)).ok().and_then(|request| request.message) {
            Some(message) => message,
            None => Asked::Commit(v1::BackupCommit {}),
        },
        2 => Asked::Begin(v1::BackupBegin::default()),
        _ => {
            let items = (0..input.byte() % 8).map(|_| item(size, next, input)).collect();
            Asked::Batch(v1::BackupBatch { items })
        }
    }
}

fn ids(input: &mut Input<'_>) -> Vec<Bytes> {
    (0..input.byte() % 8)
        .map(|_| {
            let number = input.byte();
            if number & 0x80 == 0 {
                id_of(number)
            } else {
                Bytes::copy_from_slice(input.bytes(usize::from(number & 0x3f)))
            }
        })
        .collect()
}

fn content(number: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| number.wrapping_mul((at >> (number % 8)) as u8)).collect()
}

fn id_of(number: u8) -> Bytes {
    ChunkId::of(&content(number, CHUNK as usize)).to_bytes()
}

fn item(size: u64, next: &mut u64, input: &mut Input<'_>) -> v1::MapItem {
    let how = input.byte();
    let chunk = if how & 8 == 0 { *next + u64::from(input.byte()) } else { input.magnitude() };
    let (entry, chunks) = match how % 8 {
        0 | 1 => (Entry::New(new_chunk(size, chunk, input)), 1),
        2 => (Entry::Present(id_of(input.byte())), 1),
        3 => (Entry::Zero(1), 1),
        4 => (Entry::Hole(1), 1),
        5 => (Entry::Zero(input.magnitude()), input.u64()),
        6 => (Entry::Hole(input.magnitude()), 1 << 20),
        _ => return v1::MapItem { chunk, entry: None },
    };
    *next = chunk.saturating_add(chunks) % (1 << 62);
    v1::MapItem { chunk, entry: Some(entry) }
}

/// Mostly right, and wrong in one way.
fn new_chunk(size: u64, chunk: u64, input: &mut Input<'_>) -> v1::NewChunk {
    let (how, number) = (input.byte(), input.byte());
    let left = size.saturating_sub(chunk.saturating_mul(CHUNK.into())).min(CHUNK.into());
    let plain = content(number, left as usize);
    let mut new = v1::NewChunk {
        id: ChunkId::of(&plain).to_bytes(),
        codec: u32::from(how & 1),
        plain_len: plain.len() as u32,
        stored: plain.into(),
    };
    if new.codec == 1 {
        new.stored = zstd::bulk::compress(&new.stored, 1).expect("compressing").into();
    }
    match how >> 1 & 15 {
        1 => new.plain_len = input.u32(),
        2 => new.codec = input.u32(),
        3 => new.id = Bytes::copy_from_slice(input.bytes(usize::from(number & 63))),
        // A bomb: far more than it is said to be.
        4 => new.stored = zstd::bulk::compress(&vec![number; 1 << 22], 1).expect("compressing").into(),
        5 => {
            let len = usize::from(input.u16()) % 600;
            new.stored = Bytes::copy_from_slice(input.bytes(len));
        }
        6 => new.stored = new.stored.slice(..new.stored.len() / 2),
        _ => {}
    }
    new
}

/// The first inputs: sessions that commit, with each kind of item and of fault, and a frame to each method.
pub(crate) fn corpus() -> Vec<Vec<u8>> {
    let mut inputs: Vec<Vec<u8>> = (0..16u8).map(|method| vec![0, method, 0, 4, 0, 8, 1, 16, 1]).collect();
    // How, volume, begin: flags and size in sectors; messages; items.
    for fault in 0..8u8 {
        for parent in [0, 4] {
            inputs.push(vec![
                1,
                1,
                parent,
                200,
                0,
                2,
                3,
                4,
                0,
                0,
                fault << 1,
                9,
                1,
                1,
                1,
                3,
                3,
                0,
                4,
                2,
                3,
                2,
                2,
                9,
                5,
                1,
                3,
                6,
                1,
                4,
                1,
            ]);
        }
    }
    inputs
}
