//! A file system that the kernel made on a volume of ours goes through a repository and back to the kernel.

use std::{fmt::Write as _, path::Path};

use anyhow::{Result, ensure};
use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use thinbak_engine::EmbeddedPool;
use thinbak_tests::{Way, World, number, seed, text};

use crate::guest::{Guest, Report};

/// A multiple of 64 KiB and of 192 KiB.
const SIZE: u64 = 48 << 20;

/// Helpers of the scripts here.
const FILES: &str = r#"
mounted() { # DEVICE OPTIONS FUNCTION KEY: runs it in the mounted file system, and reports what all files are after it
  mount -t ext4 -o "$2" "/dev/mapper/thin-$1" /mnt
  cd /mnt
  $3
  find . -type f | sort | while read -r file; do sha256sum "$file"; done >/tmp/files
  find . -type l -o -type d | sort >>/tmp/files
  cd /
  umount /mnt
  e2fsck -fn "/dev/mapper/thin-$1" >/tmp/fsck 2>&1 || { cat /tmp/fsck >&2; exit 1; }
  set -- "$4" $(sha256sum /tmp/files) $(wc -l /tmp/files)
  echo "$1.files $2"
  echo "$1.count $4"
}
nothing() { :; }
fill() {
  cp -a /bin /mnt/tools
  mkdir -p many/deep/folders
  for n in $(seq 40); do dd if=/dev/vdc of=many/deep/folders/$n bs=20000 count=3 skip=$n status=none; done
  dd if=/dev/vdc of=large bs=1M count=4 status=none
}
change() {
  rm -r many/deep/folders/1*
  rm tools/debugfs
  dd if=/dev/vdc of=large bs=10000 seek=100 count=7 conv=notrunc status=none
  dd if=/dev/vdc of=later bs=1M count=2 status=none
  fstrim /mnt
}
"#;

/// Gives the guest a pool and the disk with bytes to write, the thin devices of `volumes` active, and runs a script
/// in which `$NAME` is the device id of the volume of that name.
fn on_pool(guest: &Guest, pool: &Path, source: &Path, volumes: &[&str], script: &str) -> Result<Report> {
    let mut all = String::from(FILES);
    let open = EmbeddedPool::open(pool)?;
    writeln!(all, "pool_up {}", open.pool().block_size().sectors())?;
    for name in volumes {
        let volume = open.volume(name)?;
        writeln!(
            all,
            "{name}={device}; thin_up {device} {}",
            volume.size_bytes / 512,
            device = volume.device
        )?;
    }
    drop(open);
    all.push_str(script);
    all.push_str("\ndown\ncheck\n");
    guest.run(&all, &[&pool.join("metadata"), &pool.join("data"), source])
}

#[test]
fn a_file_system_of_the_kernel_is_the_same_after_backup_and_restore() -> Result<()> {
    let Some(guest) = Guest::find()? else { return Ok(()) };
    let world = World::new(Way::Embedded, SIZE)?;
    let source = world.scratch.join("source");
    let mut bytes = vec![0; 4 << 20];
    StdRng::seed_from_u64(seed()?).fill_bytes(&mut bytes);
    std::fs::write(&source, bytes)?;
    let (pool, other) = (world.pool_dir(), world.scratch.join("other"));

    let make = "mkfs.ext4 -q /dev/mapper/thin-$v; mounted $v rw fill first; say_thin first $v";
    let first = on_pool(&guest, &pool, &source, &["v"], make)?;
    let full = world.backup("v")?;
    ensure!(text(&full, "mode")? == "full", "{full}");

    let change = "mounted $v rw change second; say_thin second $v";
    let second = on_pool(&guest, &pool, &source, &["v"], change)?;
    ensure!(first.get("first.files")? != second.get("second.files")?, "nothing was changed");
    let incremental = world.backup("v")?;
    ensure!(text(&incremental, "mode")? == "incremental", "{incremental}");
    ensure!(number(&incremental, "changed_bytes")? < number(&full, "changed_bytes")?, "{incremental}");

    // Both generations to the pool that they came from, the second one also to a pool of 192 KiB blocks.
    world.restore("v", 1, "one")?;
    world.restore("v", 2, "two")?;
    let name = format!("dir:{}", other.display());
    world.thinbak.ok(&[
        "pool",
        "create",
        &name,
        "--size",
        &(SIZE * 2).to_string(),
        "--block-size",
        "192K",
    ])?;
    world.on_repository(&["restore", "p/v:2", "--to", &format!("{name}/two")])?.expect(0)?;

    let look = "mounted $two ro nothing second; say_thin second $two";
    let here = format!("mounted $one ro nothing first; say_thin first $one; {look}");
    let restored = on_pool(&guest, &pool, &source, &["one", "two"], &here)?;
    let elsewhere = on_pool(&guest, &other, &source, &["two"], look)?;
    same(&first, &restored, "first", ["v", "one"], &pool)?;
    same(&second, &restored, "second", ["v", "two"], &pool)?;
    ensure!(elsewhere.get("second.files")? == second.get("second.files")?, "files differ in the other pool");
    world.check_pool()
}

/// The reports tell of the same files, and of the same bytes of the volumes of these names.
fn same(original: &Report, restored: &Report, key: &str, names: [&str; 2], pool: &Path) -> Result<()> {
    ensure!(original.get(&format!("{key}.count"))?.parse::<u32>()? > 60, "too few files");
    let files = format!("{key}.files");
    ensure!(original.get(&files)? == restored.get(&files)?, "{key}: files differ");
    let pool = EmbeddedPool::open(pool)?;
    let [from, to] =
        names.map(|name| pool.volume(name).map(|volume| format!("{key}.sha256.{}", volume.device)));
    ensure!(original.get(&from?)? == restored.get(&to?)?, "{key}: bytes of the volume differ");
    Ok(())
}
