use std::process::Command;

use thinbak_proto::{
    Failed,
    v1::{
        CheckPoolRequest, CreatePoolRequest, CreateVolumeRequest, DeltaRequest, DumpRequest, ExportRequest,
        Extent, ImportRequest, ImportTarget, ListPoolsRequest, MetadataSource, PoolMessageRequest,
        PoolRequest, ReleaseMsnapRequest, RemoveVolumeRequest, ResizePoolRequest, ResizeVolumeRequest,
        SnapshotName, SnapshotVolumesRequest, TextChunk, TextFormat, VolumeInfo, VolumeKind,
        check_pool_request, export_response, extent::Content, import_request::Message,
        metadata_source::Source, pools_client::PoolsClient,
    },
};
use tonic::Streaming;

use super::*;
use crate::{
    channel::{BoxedChannel, in_process},
    daemon::agent_routes,
};

const MIB: u64 = 1 << 20;

/// An agent in this process with a pool called `p`.
struct Fixture {
    dir: tempfile::TempDir,
    pools: PoolsClient<BoxedChannel>,
}

impl Fixture {
    fn bare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let manager = PoolManager::new(dir.path().join("state"));
        Self { pools: PoolsClient::new(in_process(agent_routes(manager))), dir }
    }

    async fn new() -> Self {
        let mut fixture = Self::bare();
        fixture.create("p").await.unwrap();
        fixture
    }

    async fn create(&mut self, pool: &str) -> Result<(), Failed> {
        let request =
            CreatePoolRequest { pool: pool.to_owned(), size_bytes: 64 * MIB, ..CreatePoolRequest::default() };
        self.pools.create_pool(request).await.map(|_| ()).map_err(Failed::from)
    }

    async fn volume(&mut self, volume: &str, size_bytes: u64) -> Result<VolumeInfo, Failed> {
        let request = CreateVolumeRequest {
            pool: "p".into(),
            volume: volume.into(),
            size_bytes,
            ..CreateVolumeRequest::default()
        };
        self.pools.create_volume(request).await.map(tonic::Response::into_inner).map_err(Failed::from)
    }

    async fn snapshot(&mut self, names: &[(&str, &str)]) -> Result<(), Failed> {
        let snapshots = names.iter().map(|(volume, snapshot)| SnapshotName {
            pool: "p".into(),
            volume: (*volume).into(),
            snapshot: (*snapshot).into(),
        });
        let request = SnapshotVolumesRequest { snapshots: snapshots.collect() };
        self.pools.snapshot_volumes(request).await.map(|_| ()).map_err(Failed::from)
    }

    async fn remove(&mut self, volume: &str, snapshot: &str) -> Result<(), Failed> {
        let request =
            RemoveVolumeRequest { pool: "p".into(), volume: volume.into(), snapshot: snapshot.into() };
        self.pools.remove_volume(request).await.map(|_| ()).map_err(Failed::from)
    }

    async fn names(&mut self) -> Vec<String> {
        let request = PoolRequest { pool: "p".into() };
        let volumes = self.pools.list_pool_volumes(request).await.unwrap().into_inner().volumes;
        volumes.into_iter().map(|volume| volume.name).collect()
    }

    async fn import(
        &mut self,
        volume: &str,
        size_bytes: u64,
        extents: &[(u64, Content)],
    ) -> Result<VolumeInfo, Failed> {
        let target = ImportTarget { pool: "p".into(), volume: volume.into(), size_bytes };
        let mut messages = vec![ImportRequest { message: Some(Message::Target(target)) }];
        messages.extend(extents.iter().map(|(offset_bytes, content)| {
            let extent = Extent { offset_bytes: *offset_bytes, content: Some(content.clone()) };
            ImportRequest { message: Some(Message::Extent(extent)) }
        }));
        let answer = self.pools.import_volume(futures::stream::iter(messages)).await;
        answer.map(tonic::Response::into_inner).map_err(Failed::from)
    }

    /// Size and extents.
    async fn export(&mut self, volume: &str, snapshot: &str) -> (u64, Vec<(u64, Content)>) {
        let request = ExportRequest { pool: "p".into(), volume: volume.into(), snapshot: snapshot.into() };
        let mut stream = self.pools.export_volume(request).await.unwrap().into_inner();
        let (mut size, mut extents) = (0, Vec::new());
        while let Some(response) = stream.message().await.unwrap() {
            match response.message.unwrap() {
                export_response::Message::Header(header) => size = header.size_bytes,
                export_response::Message::Extent(extent) => {
                    extents.push((extent.offset_bytes, extent.content.unwrap()));
                }
            }
        }
        (size, extents)
    }
}

fn data(byte: u8, len: u64) -> Content {
    Content::Data(vec![byte; usize::try_from(len).unwrap()].into())
}

async fn text(mut stream: Streaming<TextChunk>) -> String {
    let mut text = Vec::new();
    while let Some(chunk) = stream.message().await.unwrap() {
        text.extend_from_slice(&chunk.text);
    }
    String::from_utf8(text).unwrap()
}

/// The independent judge.
fn thin_check(metadata: &std::path::Path) {
    let checked = Command::new("thin_check").arg("-q").arg(metadata).status();
    assert!(checked.expect("thin_check of thin-provisioning-tools is installed").success());
}

#[tokio::test]
async fn a_pool_is_made_listed_resized_checked_and_removed() {
    let mut fixture = Fixture::new().await;
    let place = fixture.dir.path().join("state/pools/p");
    let listed = fixture.pools.list_pools(ListPoolsRequest {}).await.unwrap().into_inner().pools;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].name.as_str(), listed[0].mode.as_str()), ("p", "rw"));
    assert_eq!(listed[0].data_total_blocks, 1024);
    let larger = ResizePoolRequest { pool: "p".into(), size_bytes: 128 * MIB, metadata_bytes: 4 * MIB };
    let resized = fixture.pools.resize_pool(larger).await.unwrap().into_inner();
    assert_eq!((resized.data_total_blocks, resized.metadata_total_blocks), (2048, 1024));
    let nothing = ResizePoolRequest { pool: "p".into(), ..ResizePoolRequest::default() };
    let failed = Failed::from(fixture.pools.resize_pool(nothing).await.unwrap_err());
    assert_eq!(failed.exit_code(), 2);
    let source = Some(check_pool_request::Source::Pool("p".into()));
    let report = fixture.pools.check_pool(CheckPoolRequest { source }).await.unwrap().into_inner();
    assert_eq!(report.damage, []);
    assert!(report.metadata_blocks_checked > 0);
    thin_check(&place.join("metadata"));
    fixture.pools.remove_pool(PoolRequest { pool: "p".into() }).await.unwrap();
    assert!(!place.exists());
    assert_eq!(fixture.pools.list_pools(ListPoolsRequest {}).await.unwrap().into_inner().pools, []);
    fixture.create("p").await.unwrap();
}

#[tokio::test]
async fn a_pool_can_be_named_by_its_place() {
    let mut fixture = Fixture::bare();
    let spec = format!("dir:{}/else", fixture.dir.path().display());
    fixture.create(&spec).await.unwrap();
    let status = fixture.pools.pool_status(PoolRequest { pool: spec }).await.unwrap().into_inner();
    assert_eq!(status.name, "else");
    assert_eq!(fixture.pools.list_pools(ListPoolsRequest {}).await.unwrap().into_inner().pools, []);
}

#[tokio::test]
async fn what_cannot_be_made_leaves_nothing_and_says_why() {
    let mut fixture = Fixture::new().await;
    assert_eq!(fixture.create("p").await.unwrap_err().exit_code(), 5);
    assert_eq!(fixture.create("a/b").await.unwrap_err().exit_code(), 2);
    assert_eq!(fixture.create("dm:x").await.unwrap_err().exit_code(), 2);
    let odd =
        CreatePoolRequest { pool: "q".into(), size_bytes: 64 * MIB + 1, ..CreatePoolRequest::default() };
    assert_eq!(Failed::from(fixture.pools.create_pool(odd).await.unwrap_err()).exit_code(), 2);
    assert!(!fixture.dir.path().join("state/pools/q").exists());
    let missing = fixture.pools.pool_status(PoolRequest { pool: "q".into() }).await.unwrap_err();
    assert_eq!(Failed::from(missing).exit_code(), 10);
}

#[tokio::test]
async fn volumes_and_snapshots_come_and_go() {
    let mut fixture = Fixture::new().await;
    fixture.volume("v", 8 * MIB).await.unwrap();
    fixture.volume("w", 8 * MIB).await.unwrap();
    assert_eq!(fixture.volume("v", 8 * MIB).await.unwrap_err().exit_code(), 5);
    let odd = fixture.volume("x", 8 * MIB + 512).await.unwrap_err();
    assert_eq!((odd.exit_code(), odd.hint.is_some()), (2, true));
    fixture.snapshot(&[("v", "a"), ("w", "a")]).await.unwrap();
    assert_eq!(fixture.names().await, ["v", "v@a", "w", "w@a"]);
    assert_eq!(fixture.snapshot(&[("v", "b"), ("none", "b")]).await.unwrap_err().exit_code(), 10);
    assert_eq!(fixture.names().await, ["v", "v@a", "w", "w@a"], "all or none");
    assert_eq!(fixture.remove("v", "").await.unwrap_err().exit_code(), 5);
    fixture.remove("v", "a").await.unwrap();
    fixture.remove("v", "").await.unwrap();
    assert_eq!(fixture.remove("v", "").await.unwrap_err().exit_code(), 10);
    let resize = ResizeVolumeRequest { pool: "p".into(), volume: "w".into(), size_bytes: 16 * MIB };
    assert_eq!(fixture.pools.resize_volume(resize).await.unwrap().into_inner().size_bytes, 16 * MIB);
    assert_eq!(fixture.names().await, ["w", "w@a"]);
}

#[tokio::test]
async fn what_is_imported_is_exported_and_holes_stay_holes() {
    let mut fixture = Fixture::new().await;
    let extents = [
        (0, data(1, MIB)),
        (MIB, Content::ZeroBytes(MIB)),
        (4 * MIB, data(2, 65536)),
        (6 * MIB, Content::UnmappedBytes(2 * MIB)),
    ];
    let made = fixture.import("v", 8 * MIB, &extents).await.unwrap();
    assert_eq!((made.size_bytes, made.mapped_bytes), (8 * MIB, MIB + 65536));
    fixture.snapshot(&[("v", "s")]).await.unwrap();
    for snapshot in ["", "s"] {
        let (size, found) = fixture.export("v", snapshot).await;
        assert_eq!(size, 8 * MIB);
        assert_eq!(found, [extents[0].clone(), extents[2].clone()]);
    }
    let request = PoolRequest { pool: "p".into() };
    let kinds: Vec<_> = fixture.pools.list_pool_volumes(request).await.unwrap().into_inner().volumes;
    let kinds: Vec<_> = kinds.iter().map(VolumeInfo::kind).collect();
    assert_eq!(kinds, [VolumeKind::Volume, VolumeKind::Snapshot]);
}

#[tokio::test]
async fn an_import_that_fails_leaves_nothing() {
    let mut fixture = Fixture::new().await;
    let too_large = fixture.import("v", MIB, &[(0, data(1, MIB)), (MIB, data(1, 512))]).await.unwrap_err();
    assert_eq!(too_large.exit_code(), 5);
    let backwards = fixture.import("v", MIB, &[(65536, data(1, 512)), (0, data(1, 512))]).await.unwrap_err();
    assert_eq!(backwards.exit_code(), 2);
    assert_eq!(fixture.import("v", 0, &[]).await.unwrap_err().exit_code(), 2);
    assert_eq!(fixture.names().await, Vec::<String>::new());
    let status = fixture.pools.pool_status(PoolRequest { pool: "p".into() }).await.unwrap().into_inner();
    assert_eq!(status.data_used_blocks, 0);
}

#[tokio::test]
async fn an_import_that_is_abandoned_leaves_nothing() {
    let mut fixture = Fixture::new().await;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let mut pools = fixture.pools.clone();
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let call = tokio::spawn(async move { pools.import_volume(requests).await });
    let target = ImportTarget { pool: "p".into(), volume: "v".into(), size_bytes: 8 * MIB };
    sender.send(ImportRequest { message: Some(Message::Target(target)) }).await.unwrap();
    // The queues are full at some time only if the service takes what comes before.
    for piece in 0..12u64 {
        let extent = Extent { offset_bytes: piece * 65536, content: Some(data(1, 65536)) };
        sender.send(ImportRequest { message: Some(Message::Extent(extent)) }).await.unwrap();
    }
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    // The volume is locked until the writer has cleaned up.
    let made = loop {
        match fixture.import("v", MIB, &[]).await {
            Err(failed) if failed.exit_code() == 11 => tokio::task::yield_now().await,
            made => break made.unwrap(),
        }
    };
    assert_eq!((made.size_bytes, made.mapped_bytes), (MIB, 0));
    assert_eq!(fixture.names().await, ["v"]);
    let status = fixture.pools.pool_status(PoolRequest { pool: "p".into() }).await.unwrap().into_inner();
    assert_eq!(status.data_used_blocks, 0);
}

#[tokio::test]
async fn an_existing_volume_is_filled_only_while_it_is_empty() {
    let mut fixture = Fixture::new().await;
    let uuid = fixture.volume("v", 2 * MIB).await.unwrap().uuid;
    assert_eq!(fixture.import("v", 4 * MIB, &[]).await.unwrap_err().exit_code(), 5);
    let filled = fixture.import("v", 0, &[(0, data(3, 65536))]).await.unwrap();
    assert_eq!((filled.uuid, filled.size_bytes, filled.mapped_bytes), (uuid, 2 * MIB, 65536));
    let again = fixture.import("v", 0, &[(0, data(4, 65536))]).await.unwrap_err();
    assert_eq!(again.exit_code(), 5);
    assert_eq!(fixture.export("v", "").await.1, [(0, data(3, 65536))]);
}

#[tokio::test]
async fn the_metadata_snapshot_is_reserved_shown_and_released() {
    let mut fixture = Fixture::new().await;
    let pool = || PoolRequest { pool: "p".into() };
    assert_eq!(fixture.pools.show_msnap(pool()).await.unwrap().into_inner().held_root, 0);
    fixture.volume("v", MIB).await.unwrap();
    let reserved = fixture.pools.reserve_msnap(pool()).await.unwrap().into_inner();
    assert!(reserved.held_root > 0 && reserved.ours);
    assert_eq!(reserved.devices, 1);
    let twice = fixture.pools.reserve_msnap(pool()).await.unwrap_err();
    assert_eq!(Failed::from(twice).exit_code(), 11);
    fixture.volume("w", MIB).await.unwrap();
    assert_eq!(
        fixture.pools.show_msnap(pool()).await.unwrap().into_inner().devices,
        1,
        "a moment of the past"
    );
    let release = ReleaseMsnapRequest { pool: "p".into(), force: false };
    fixture.pools.release_msnap(release.clone()).await.unwrap();
    let twice = fixture.pools.release_msnap(release).await.unwrap_err();
    assert_eq!(Failed::from(twice).exit_code(), 10);
}

#[tokio::test]
async fn only_messages_that_the_registry_survives_are_sent() {
    let mut fixture = Fixture::new().await;
    let mut send = async |words: &str| {
        let words = words.split(' ').map(ToOwned::to_owned).collect();
        let request = PoolMessageRequest { pool: "p".into(), words };
        fixture.pools.message(request).await.map(|_| ()).map_err(Failed::from)
    };
    send("reserve_metadata_snap").await.unwrap();
    send("release_metadata_snap").await.unwrap();
    send("create_thin 7").await.unwrap();
    let cases = [
        ("set_transaction_id 0 9", 5),
        ("create_thin 7", 5),
        ("create_snap 8 9", 10),
        ("delete 9", 10),
        ("nonsense", 2),
        ("create_thin -1", 2),
    ];
    for (words, code) in cases {
        let failed = send(words).await.unwrap_err();
        assert_eq!(failed.exit_code(), code, "{words}: {failed}");
    }
    assert_eq!(fixture.names().await, ["#7"]);
    fixture.volume("v", MIB).await.unwrap();
    let words = ["delete", "0"].map(ToOwned::to_owned).to_vec();
    let refused = fixture.pools.message(PoolMessageRequest { pool: "p".into(), words }).await.unwrap_err();
    let refused = Failed::from(refused);
    assert_eq!((refused.exit_code(), refused.hint.is_some()), (5, true), "{refused}");
}

#[tokio::test]
async fn dump_and_delta_print_what_the_other_tools_print() {
    let mut fixture = Fixture::new().await;
    fixture.import("v", 8 * MIB, &[(0, data(1, MIB)), (4 * MIB, data(2, 65536))]).await.unwrap();
    fixture.snapshot(&[("v", "a")]).await.unwrap();
    let source = || Some(MetadataSource { source: Some(Source::Pool("p".into())), metadata_snap: false });
    let dump = DumpRequest { source: source(), ..DumpRequest::default() };
    let ours = text(fixture.pools.dump(dump).await.unwrap().into_inner()).await;
    let metadata = fixture.dir.path().join("state/pools/p/metadata");
    let theirs = Command::new("thin_dump").arg(&metadata).output().unwrap();
    assert_eq!(ours, String::from_utf8(theirs.stdout).unwrap());

    let delta = |from: &str, to: &str, format: TextFormat| DeltaRequest {
        source: source(),
        from: from.into(),
        to: to.into(),
        verbose: false,
        format: format.into(),
        changes_only: false,
    };
    let ours = fixture.pools.delta(delta("v@a", "v", TextFormat::Xml)).await.unwrap().into_inner();
    let whole = text(ours).await;
    assert!(whole.contains("<same"));
    let changes = DeltaRequest { changes_only: true, ..delta("v@a", "v", TextFormat::Xml) };
    let changes = text(fixture.pools.delta(changes).await.unwrap().into_inner()).await;
    let left: String = whole.lines().filter(|l| !l.contains("<same")).map(|l| format!("{l}\n")).collect();
    assert_eq!(changes, left);
    let json = fixture.pools.delta(delta("v@a", "v", TextFormat::Json)).await.unwrap().into_inner();
    assert!(serde_json::from_str::<serde_json::Value>(&text(json).await).is_ok());
    let mut none = fixture.pools.delta(delta("v", "none", TextFormat::Xml)).await.unwrap().into_inner();
    assert_eq!(Failed::from(none.message().await.unwrap_err()).exit_code(), 10);
    let file = MetadataSource {
        source: Some(Source::MetadataPath(metadata.display().to_string())),
        metadata_snap: true,
    };
    let dump = DumpRequest { source: Some(file), ..DumpRequest::default() };
    let mut none = fixture.pools.dump(dump).await.unwrap().into_inner();
    assert_eq!(Failed::from(none.message().await.unwrap_err()).exit_code(), 10, "no metadata snapshot");
}

#[tokio::test]
async fn metadata_is_checked_by_its_path_as_by_its_pool() {
    let mut fixture = Fixture::new().await;
    fixture.import("v", 8 * MIB, &[(0, data(1, MIB))]).await.unwrap();
    let check = |source| CheckPoolRequest { source: Some(source) };
    let pool = check_pool_request::Source::Pool("p".into());
    let by_pool = fixture.pools.check_pool(check(pool)).await.unwrap().into_inner();
    let metadata = fixture.dir.path().join("state/pools/p/metadata");
    let path = |path: &std::path::Path| check_pool_request::Source::MetadataPath(path.display().to_string());
    let by_path = fixture.pools.check_pool(check(path(&metadata))).await.unwrap().into_inner();
    assert_eq!(by_path, by_pool);
    assert!(by_path.damage.is_empty() && by_path.mappings == 16, "{by_path:?}");

    let copy = fixture.dir.path().join("copy");
    let mut bytes = std::fs::read(&metadata).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&copy, bytes).unwrap();
    let damaged = fixture.pools.check_pool(check(path(&copy))).await.unwrap().into_inner();
    assert!(damaged.damage.iter().any(|damage| damage.fatal), "{damaged:?}");
    let missing = fixture.dir.path().join("missing");
    let failed = Failed::from(fixture.pools.check_pool(check(path(&missing))).await.unwrap_err());
    assert_eq!(failed.exit_code(), 10);
}
