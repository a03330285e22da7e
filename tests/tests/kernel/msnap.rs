//! Metadata snapshots that one side holds and the other reads.

use std::{path::Path, sync::Arc};

use anyhow::{Result, ensure};
use thinbak_engine::{
    Access, BlockDevice, BlockSize, DeviceId, FileDevice, Pool,
    delta::{DeltaOptions, delta_xml},
    dump::dump_xml,
    metadata_view::{MetadataView, Roots},
};
use thinbak_tests::{Scratch, thin_check};

use crate::{guest::Guest, lab::sha256};

const BLOCK: u64 = 65_536;
const SECTORS: u64 = 65_536;

/// While the pool is active, and written between two looks at it: the real tools say the same each time.
const READ: &str = r#"
look() { # KEY
  thin_dump -m /dev/vda >/tmp/dump
  thin_delta -m --thin1 0 --thin2 1 /dev/vda >/tmp/delta
  thin_ls -m --no-headers -o DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS /dev/vda >/tmp/ls
  thin_check -q -m /dev/vda
  for file in dump delta ls; do set -- "$1" $(sha256sum /tmp/$file); echo "$1.$file $2"; done
}
"#;

/// Hashes of what the engine prints of the metadata snapshot.
fn engine_says(metadata: &Path) -> Result<[(&'static str, String); 2]> {
    let device: Arc<dyn BlockDevice> = Arc::new(FileDevice::open(metadata, Access::ReadOnly)?);
    let view = MetadataView::open(device, Roots::MetadataSnap)?;
    let [mut dump, mut delta] = [Vec::new(), Vec::new()];
    dump_xml(&view, None, &mut dump)?;
    let [left, right] = [DeviceId::new(0)?, DeviceId::new(1)?];
    delta_xml(&view, left, right, DeltaOptions::default(), &mut delta)?;
    Ok([("dump", sha256(&dump)?), ("delta", sha256(&delta)?)])
}

#[test]
fn both_read_the_metadata_snapshot_of_the_other_while_it_is_held() -> Result<()> {
    let Some(guest) = Guest::find()? else { return Ok(()) };
    let scratch = Scratch::new()?;
    let [metadata, data, source] = ["metadata", "data", "source"].map(|name| scratch.join(name));
    FileDevice::create(&metadata, 8 << 20)?;
    FileDevice::create(&data, SECTORS * 512)?;
    std::fs::write(&source, vec![7; 1 << 20])?;

    // The engine's, which the kernel keeps as it is while it writes.
    let open = |path: &Path| FileDevice::open(path, Access::ReadWrite).map(Arc::new);
    let pool = Pool::format(open(&metadata)?, open(&data)?, BlockSize::from_bytes(BLOCK)?)?;
    let [origin, snapshot] = [DeviceId::new(0)?, DeviceId::new(1)?];
    pool.create_thin(origin)?;
    (0..200).try_for_each(|block| pool.write(origin, block * BLOCK, &[1; 4096]))?;
    pool.create_snap(snapshot, origin)?;
    (40..70).try_for_each(|block| pool.write(snapshot, block * BLOCK, &[2; 4096]))?;
    pool.discard(origin, 100 * BLOCK, 7 * BLOCK)?;
    pool.reserve_metadata_snap()?;
    (0..20).try_for_each(|block| pool.write(origin, block * BLOCK, &[3; 4096]))?;
    pool.commit()?;
    drop(pool);
    let before = engine_says(&metadata)?;
    let script = format!(
        "{READ}
pool_up 128; thin_up 0 32768; thin_up 1 32768
look first
for block in 1 3 5 7 60 61 150; do put 0 $((block * {BLOCK})) {BLOCK} 0; put 1 $((block * {BLOCK})) 4096 0; done
discard 1 0 1048576
message create_snap 2 1
look second
message release_metadata_snap
message reserve_metadata_snap
look third
put 0 0 {BLOCK} 0
discard 0 {BLOCK} 1048576
look fourth
down; check"
    );
    let report = guest.run(&script, &[&metadata, &data, &source])?;
    let after = engine_says(&metadata)?;
    for (turns, engine) in [(["first", "second"], &before), (["third", "fourth"], &after)] {
        for turn in turns {
            for (key, hash) in engine {
                ensure!(report.get(&format!("{turn}.{key}"))? == hash, "{turn}.{key} differs");
            }
        }
        let [first, second] = turns.map(|turn| report.get(&format!("{turn}.ls")).map(str::to_owned));
        ensure!(first? == second?, "thin_ls says something else of what is held");
    }
    ensure!(before != after, "the second metadata snapshot is the first");
    thin_check(&metadata)
}
