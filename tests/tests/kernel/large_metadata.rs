//! Metadata devices at and above what the format can use.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path, sync::Arc};

use anyhow::{Result, ensure};
use thinbak_engine::{Access, BlockSize, DeviceId, FileDevice, Pool};
use thinbak_tests::Scratch;

use crate::guest::Guest;

const KIB: u64 = 1024;
const GIB: u64 = 1 << 30;
/// Blocks of 4 KiB that the format can use: 255 bitmaps of 16,320.
const USABLE_BLOCKS: u64 = 255 * 16_320;
/// The limit of the kernel's documents, which forgets that bitmaps have a header.
const DOCUMENTED_BLOCKS: u64 = 255 * 16_384;

/// Every pool is taken as the engine made it, used, and has the same size afterwards; so has a blank device.
const SCRIPT: &str = r#"
use_pool() { # NAME DEVICE
  dmsetup create "$1" --table "0 32768 thin-pool $2 $3 128 0"
  dmsetup message "$1" 0 'create_thin 1'
  dmsetup create thin --table "0 32768 thin /dev/mapper/$1 1"
  dd if=/dev/vdd of=/dev/mapper/thin bs=64k count=3 oflag=direct status=none
  dmsetup remove thin
  set -- "$1" $(dmsetup status "$1")
  echo "$1 ${6#*/} $7"
  dmsetup remove "$1"
}
"#;

fn script() -> String {
    let mut script = SCRIPT.to_owned();
    for (name, device) in [("over", "vda"), ("exact", "vdb"), ("documented", "vdc")] {
        script += &format!("use_pool {name} /dev/{device} /dev/vdd\n");
    }
    script += "dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct status=none\nuse_pool fresh /dev/vda /dev/vdd\n";
    script
}

/// A sparse file has no data from here on.
fn ends_with_a_hole(path: &Path, from: u64) -> Result<bool> {
    let file = File::open(path)?;
    let found = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(from));
    if found == Err(rustix::io::Errno::NXIO) {
        return Ok(true);
    }
    // A host may give zeroes where the guest has read; they are no data that somebody wrote.
    let size = file.metadata()?.len();
    let mut at = found?;
    let mut block = [0; 4096];
    while at < size {
        file.read_exact_at(&mut block, at)?;
        if block.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at = match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at + 4096)) {
            Ok(next) => next,
            Err(_) => return Ok(true),
        };
    }
    Ok(true)
}

#[test]
fn only_the_usable_part_of_a_large_metadata_device_is_used() -> Result<()> {
    let scratch = Scratch::new()?;
    let sizes = [("over", 17 * GIB), ("exact", 16 * GIB), ("documented", DOCUMENTED_BLOCKS * 4 * KIB)];
    let data = scratch.join("data");
    FileDevice::create(&data, 16 * KIB * KIB)?;
    let open_data = || FileDevice::open(&data, Access::ReadWrite).map(Arc::new);
    for (name, size) in sizes {
        let path = scratch.join(name);
        let metadata = Arc::new(FileDevice::create(&path, size)?);
        let pool = Pool::format(metadata, open_data()?, BlockSize::from_bytes(64 * KIB)?)?;
        pool.create_thin(DeviceId::new(0)?)?;
        pool.write(DeviceId::new(0)?, 0, &[1; 100_000])?;
        pool.commit()?;
        let status = pool.status();
        ensure!(status.metadata_total == USABLE_BLOCKS, "{name}: {status}");
        ensure!(pool.superblock().metadata_nr_blocks == USABLE_BLOCKS, "{name}: {:?}", pool.superblock());
        ensure!(ends_with_a_hole(&path, USABLE_BLOCKS * 4 * KIB)?, "{name}: written beyond the usable part");
        drop(pool);
        thinbak_tests::thin_check(&path)?;
    }
    let Some(guest) = Guest::find()? else { return Ok(()) };
    let names = sizes.map(|(name, _)| scratch.join(name));
    let [over, exact, documented] = &names;
    let report = guest.run(&script(), &[over, exact, documented, &data])?;
    for (name, used) in [("over", 5), ("exact", 5), ("documented", 5), ("fresh", 3)] {
        let found = report.get(name)?;
        ensure!(found == format!("{USABLE_BLOCKS} {used}/256"), "{name}: {found}");
    }
    for path in names {
        ensure!(ends_with_a_hole(&path, USABLE_BLOCKS * 4 * KIB)?, "the kernel wrote beyond the usable part");
        thinbak_tests::thin_check(&path)?;
        let metadata = Arc::new(FileDevice::open(&path, Access::ReadWrite)?);
        let pool = Pool::open(metadata, open_data()?)?;
        ensure!(pool.status().metadata_total == USABLE_BLOCKS, "{}", pool.status());
    }
    Ok(())
}
