//! Pools of the kernel are not filled, volumes of theirs replaced, several generations restored together, and mounted file
//! systems of one moment: by the programs themselves, in the guest.

use anyhow::{Result, ensure};

use crate::driven::on_a_pool;

const TOOLS: &str = r#"
used() { set -- $(dmsetup status pool); echo "${6%/*}"; }
put() { dd if=/tmp/tools/content of=/dev/mapper/web bs=1M count="$1" skip="$2" seek="$3" oflag=direct status=none; } # COUNT FROM TO
keep() { dd if=/dev/mapper/web of="$1" bs=1M iflag=direct status=none; }
size() { dmsetup reload web --table "0 $1 thin /dev/mapper/pool $(active_id)"; dmsetup resume web; } # SECTORS
active_id() { set -- $(dmsetup table web); echo "$5"; }
"#;

/// Two repositories, and limits that the pool is beyond.
const GUARDED: &str = r#"
thinbak-server init --repo /tmp/other >/dev/null 2>&1
put 12 0 0
mode first dm:pool/web
put 12 0 1
export THINBAK_CONFIG=/tmp/agent.toml
limit() { printf '[guard]\n%s\n' "$1" >/tmp/agent.toml; }
limit 'min_free_data = "236M"'
before=$(used)
thinbak pool status dm:pool 2>&1 | grep -q 'no snapshots are taken: .*of data'
# Who names no repository lives without room; a backup for another one makes some.
refused 5 'are to stay free' thinbak volume snapshot dm:pool/web@no
test "$(used)" = "$before"
thinbak -q --json backup --repo /tmp/other dm:pool/web >/tmp/summary
grep -q '"notes":\["the base for another repository was given up' /tmp/summary
test "$(used)" -lt "$before"
mode again dm:pool/web
# What cannot fit is refused before anything is written.
limit 'min_free_data = "240M"'
before=$(used)
refused 5 '12582912 bytes are needed' thinbak restore pool/web:1 --to dm:pool/no
refused 10 'no volume' thinbak volume export dm:pool/no
test "$(used)" = "$before"
put 1 3 0
limit 'min_free_metadata = "15M"'
refused 5 'of metadata' thinbak backup dm:pool/web
limit 'max_snapshots = 1'
refused 5 'has 1 snapshots and bases, and may have 1' thinbak volume snapshot dm:pool/web@no
limit 'min_free = "5%"'
refused 2 'unknown field' thinbak pool status dm:pool
unset THINBAK_CONFIG
quiet restore pool/web:1 --to dm:pool/yes
# One that was not written gets its generation although no snapshot is taken of another.
message create_thin 3
dmsetup create logs --table "0 65536 thin /dev/mapper/pool 3"
quiet backup dm:pool/logs
put 1 2 0
export THINBAK_CONFIG=/tmp/agent.toml
limit 'min_free_data = "255M"'
refused 3 'are to stay free' thinbak --json backup dm:pool/web dm:pool/logs
grep -q '"mode":"unchanged".*"volume":"[^"]*/logs"' /tmp/said
tidy
down
check
echo "done yes"
"#;

/// Active, inactive, open, of another size.
const IN_PLACE: &str = r#"
put 12 0 0
keep /tmp/one
quiet backup dm:pool/web
put 2 5 3
put 1 0 14
keep /tmp/two
quiet backup dm:pool/web
quiet volume snapshot dm:pool/web@kept
exec 7</dev/mapper/web
refused 5 'mounted or open' thinbak restore pool/web:1 --in-place=dm:pool/web
exec 7<&-
dmsetup suspend web
refused 11 'it is suspended' thinbak restore pool/web:1 --in-place=dm:pool/web
dmsetup resume web
dmsetup reload web --table "0 65536 thin /dev/mapper/pool 0"
refused 11 'a new table is loaded' thinbak restore pool/web:1 --in-place=dm:pool/web
dmsetup clear web
test "$(active_id)" = 0
before=$(used)
thinbak -q --json restore pool/web:1 --in-place=dm:pool/web >/tmp/summary
grep -q 'web is device [0-9]* of the pool from now on' /tmp/summary
cmp /tmp/one /dev/mapper/web
test "$(active_id)" = "$(id_of web)"
test "$(active_id)" != 0
# Only what differs: two MiB, and one that is zero now.
test "$(used)" -le $((before + 3 * 16))
tidy
thinbak volume export dm:pool/web@kept 2>/dev/null | cmp - /tmp/two
mode third dm:pool/web
dmsetup remove web
quiet restore pool/web:2 --in-place
dmsetup create web --table "0 65536 thin /dev/mapper/pool $(id_of web)"
cmp /tmp/two /dev/mapper/web
# Larger, and back: what was behind the end does not come back.
size 98304
put 6 2 36
quiet backup dm:pool/web
quiet restore pool/web:1 --in-place=dm:pool/web
cmp /tmp/one /dev/mapper/web
size 98304
dd if=/dev/mapper/web bs=1M skip=32 status=none | cmp -n 16777216 - /dev/zero
size 65536
# An empty volume is imported into.
quiet volume create dm:pool/image --size 32M
thinbak -q volume import dm:pool/image </tmp/two >/dev/null
thinbak volume export dm:pool/image 2>/dev/null | cmp - /tmp/two
refused 5 'not empty' thinbak volume import dm:pool/image </tmp/one
tidy
down
check
echo "done yes"
"#;

/// Killed at any moment, and what each of the steps leaves.
const KILLED: &str = r#"
put 12 0 0
keep /tmp/one
quiet backup dm:pool/web
put 8 2 1
keep /tmp/two
quiet backup dm:pool/web
whole() { # One or the other, never a mix; and the registry says the same.
  quiet volume list dm:pool
  tidy
  cmp -s /tmp/one /dev/mapper/web || cmp /tmp/two /dev/mapper/web
  test "$(active_id)" = "$(id_of web)"
}
kills=0
for try in 1 2 3 4 5 6 7 8; do
  thinbak -q restore "pool/web:$((try % 2 + 1))" --in-place=dm:pool/web >/dev/null 2>&1 &
  worker=$!
  while kill -0 $worker 2>/dev/null; do
    if dmsetup ls | grep -q '^thinbak-'; then
      sleep "0.$((try * 6))"
      if kill -9 $worker 2>/dev/null; then kills=$((kills + 1)); fi
      break
    fi
  done
  wait $worker || true
  whole
done
echo "kills $kills"
uuid=$(thinbak --json volume list dm:pool | tr -d ' \n' | sed 's/},{/}\n{/g' | grep '"name":"web"' | sed -n 's/.*"uuid":"\([0-9a-f-]*\)".*/\1/p')
# A head, and its volume about to be replaced by it.
begun() {
  head=
  for try in 1 2 3 4 5 6; do
    thinbak -q restore "pool/web:$1" --in-place=dm:pool/web >/dev/null 2>&1 &
    worker=$!
    while kill -0 $worker 2>/dev/null; do
      head=$(dmsetup ls | sed -n 's/^thinbak-.*-\([0-9]*\)[^0-9].*/\1/p')
      if [ -n "$head" ]; then kill -9 $worker 2>/dev/null || head=; break; fi
    done
    wait $worker || true
    [ -z "$head" ] || break
  done
  test -n "$head"
  former=$(active_id)
  sed -i "s/\"msnap\": null/\"msnap\": null, \"switch\": {\"volume\":\"$uuid\",\"from\":$former,\"to\":$head,\"root\":[1,1]}/" /tmp/state/dm/*.json
  grep -q '"switch"' /tmp/state/dm/*.json
}
stays() { # FORMER
  quiet volume list dm:pool
  tidy
  ! grep -q '"switch"' /tmp/state/dm/*.json
  test "$(id_of web)" = "$1"
}
# Before the new table was in force: it is cleared.
begun 1
dmsetup reload web --table "0 65536 thin /dev/mapper/pool $head"
stays "$former"
test -z "$(dmsetup table --inactive web)"
test "$(active_id)" = "$former"
whole
# After it: the rest is done.
begun 2
dmsetup reload web --table "0 65536 thin /dev/mapper/pool $head"
dmsetup resume web
stays "$head"
test "$(active_id)" = "$head"
message create_snap 77 "$former" 2>/dev/null && exit 1
# The head is open by its private device, which is not the volume's: the former one stays.
begun 1
private="thinbak-$(dmsetup info -c --noheadings --separator - -o major,minor pool | tr -d ' ')-$head"
dmsetup info "$private" >/dev/null 2>&1 || dmsetup create "$private" --table "0 65536 thin /dev/mapper/pool $head"
exec 7<"/dev/dm-$(dmsetup info -c --noheadings -o minor "$private" | tr -d ' ')"
quiet volume list dm:pool
test "$(active_id)" = "$former"
! grep -q '"switch"' /tmp/state/dm/*.json
exec 7<&-
stays "$former"
whole
# An intent whose volume is gone is given up, and keeps nobody from anything.
begun 2
sed -i "s/\"volume\":\"$uuid\"/\"volume\":\"00000000-0000-0000-0000-000000000001\"/" /tmp/state/dm/*.json
stays "$former"
quiet restore pool/web:1 --in-place=dm:pool/web
cmp /tmp/one /dev/mapper/web
quiet restore pool/web:2 --in-place=dm:pool/web
whole
# Nothing is active, and the former device was written since: it stays.
begun 1
dmsetup remove web
stays "$former"
dmsetup create web --table "0 65536 thin /dev/mapper/pool $former"
quiet restore pool/web:1 --in-place=dm:pool/web
cmp /tmp/one /dev/mapper/web
tidy
down
check
echo "done yes"
"#;

/// A pool whose blocks are no power of two and show what was in them before; the data device is full of something.
const STALE: &str = r#"
down
dd if=/dev/zero of=/dev/vda bs=64k count=1 oflag=direct status=none
for at in 0 12 24 36 48 60 72 84; do
  dd if=/tmp/tools/content of=/dev/vdb bs=1M seek=$at oflag=direct conv=notrunc status=none
done
dmsetup create pool --table \
  "0 $((sectors / 384 * 384)) thin-pool /dev/vda /dev/vdb 384 0 3 skip_block_zeroing no_discard_passdown error_if_no_space"
message create_thin 0
dmsetup create web --table "0 65536 thin /dev/mapper/pool 0"
put 5 0 1
dd if=/tmp/tools/content of=/dev/mapper/web bs=4k count=3 skip=7 seek=5001 oflag=direct status=none
keep /tmp/one
mode first dm:pool/web
blkdiscard -o 1572864 -l 786432 /dev/mapper/web
dd if=/tmp/tools/content of=/dev/mapper/web bs=4k count=1 skip=9 seek=7001 oflag=direct status=none
keep /tmp/two
mode second dm:pool/web
quiet restore pool/web:1 --to dm:pool/one
quiet restore pool/web:1..2 --to dm:pool/both
up one "$(id_of one)"
cmp /tmp/one /dev/mapper/one
up both "$(id_of both)"
cmp /tmp/two /dev/mapper/both
thinbak volume export dm:pool/both@gen-1 2>/dev/null | cmp - /tmp/one
quiet restore pool/web:1 --in-place=dm:pool/web
cmp /tmp/one /dev/mapper/web
quiet restore pool/web:2 --in-place=dm:pool/web
cmp /tmp/two /dev/mapper/web
tidy
down
check
echo "done yes"
"#;

/// Generations of several sizes in one restore.
const TOGETHER: &str = r#"
put 12 0 0
keep /tmp/one
quiet backup dm:pool/web
put 2 5 3
keep /tmp/two
quiet backup dm:pool/web
size 16384
put 1 2 0
keep /tmp/three
quiet backup dm:pool/web
size 65536
put 2 7 9
keep /tmp/four
quiet backup dm:pool/web
before=$(used)
quiet restore pool/web:1..2 --to dm:pool/pair
# What they share is written once.
echo "blocks $(($(used) - before))"
quiet restore pool/web:1..4 --to dm:pool/all
for pair in gen-1:one gen-2:two gen-3:three; do
  thinbak volume export "dm:pool/all@${pair%:*}" 2>/dev/null | cmp - "/tmp/${pair#*:}"
done
up all "$(id_of all)"
cmp /tmp/four /dev/mapper/all
thinbak volume export dm:pool/pair@gen-1 2>/dev/null | cmp - /tmp/one
tidy
down
check
echo "done yes"
"#;

/// Both are written all the time, first the one, then the other.
const GROUP: &str = r#"
modprobe xfs
message create_thin 1
dmsetup create logs --table "0 131072 thin /dev/mapper/pool 1"
mkfs.ext4 -q /dev/mapper/web
mkfs.xfs -q --unsupported -l size=8m /dev/mapper/logs
mkdir -p /m1 /m2
mount -t ext4 /dev/mapper/web /m1
mount -t xfs /dev/mapper/logs /m2
(
  n=0
  while [ ! -e /tmp/enough ]; do
    n=$((n + 1))
    for at in /m1 /m2; do
      dd if=/tmp/tools/content of=$at/f$((n % 20)) bs=40000 count=1 skip=$n status=none
      echo $n >$at/new
      sync $at/new
      mv $at/new $at/last
      sync $at
    done
  done
) &
writer=$!
while [ ! -e /m2/last ] || [ "$(cat /m2/last)" -lt 5 ]; do sleep 0.1; done
quiet backup --group dm:pool/web dm:pool/logs
seen=$(cat /m2/last)
while [ "$(cat /m2/last)" -lt $((seen + 2)) ]; do sleep 0.1; done
quiet backup --group dm:pool/web dm:pool/logs
touch /tmp/enough
wait $writer
umount /m1 /m2
tidy
quiet restore pool/web:2 --to dm:pool/web2
quiet restore pool/logs:2 --to dm:pool/logs2
dmsetup create web2 --table "0 65536 thin /dev/mapper/pool $(id_of web2)"
dmsetup create logs2 --table "0 131072 thin /dev/mapper/pool $(id_of logs2)"
up base1 "$(id_of 'web@thinbak-base-[0-9a-f-]*2')"
dmsetup create base2 --readonly --table "0 131072 thin /dev/mapper/pool $(id_of 'logs@thinbak-base-[0-9a-f-]*2')"
cmp /dev/mapper/base1 /dev/mapper/web2
cmp /dev/mapper/base2 /dev/mapper/logs2
e2fsck -fn /dev/mapper/web2 >/tmp/fsck 2>&1 || { cat /tmp/fsck >&2; exit 1; }
mount -t ext4 /dev/mapper/web2 /m1
mount -t xfs -o nouuid /dev/mapper/logs2 /m2
echo "first $(cat /m1/last)"
echo "second $(cat /m2/last)"
umount /m1 /m2
e2fsck -fn /dev/mapper/web2 >/tmp/fsck 2>&1 || { cat /tmp/fsck >&2; exit 1; }
xfs_repair -n /dev/mapper/logs2 >/tmp/fsck 2>&1 || { cat /tmp/fsck >&2; exit 1; }
down
check
echo "done yes"
"#;

#[test]
fn a_pool_is_not_filled_by_snapshots_or_restores() -> Result<()> {
    let Some(report) = on_a_pool(&format!("{TOOLS}{GUARDED}"))? else { return Ok(()) };
    ensure!(report.get("first")? == "full");
    ensure!(report.get("again")? == "compared");
    ensure!(report.get("done")? == "yes");
    Ok(())
}

#[test]
fn a_volume_of_a_kernel_pool_is_replaced_in_place() -> Result<()> {
    let Some(report) = on_a_pool(&format!("{TOOLS}{IN_PLACE}"))? else { return Ok(()) };
    ensure!(report.get("third")? == "incremental");
    ensure!(report.get("done")? == "yes");
    Ok(())
}

#[test]
fn a_pool_that_does_not_zero_its_blocks_of_192_kib_is_backed_up_and_restored_to() -> Result<()> {
    let Some(report) = on_a_pool(&format!("{TOOLS}{STALE}"))? else { return Ok(()) };
    ensure!(report.get("first")? == "full");
    ensure!(report.get("second")? == "incremental");
    ensure!(report.get("done")? == "yes");
    Ok(())
}

#[test]
fn a_volume_that_was_being_replaced_is_the_old_one_or_the_new_one() -> Result<()> {
    let Some(report) = on_a_pool(&format!("{TOOLS}{KILLED}"))? else { return Ok(()) };
    ensure!(report.get("kills")?.parse::<u32>()? >= 2, "{} were killed", report.get("kills")?);
    ensure!(report.get("done")? == "yes");
    Ok(())
}

#[test]
fn generations_that_are_restored_together_to_a_kernel_pool_share_what_they_share() -> Result<()> {
    let Some(report) = on_a_pool(&format!("{TOOLS}{TOGETHER}"))? else { return Ok(()) };
    ensure!(report.get("blocks")? == "224", "{} blocks, not 14 MiB", report.get("blocks")?);
    ensure!(report.get("done")? == "yes");
    Ok(())
}

#[test]
fn mounted_file_systems_that_are_written_are_backed_up_at_one_moment() -> Result<()> {
    let Some(report) = on_a_pool(&format!("{TOOLS}{GROUP}"))? else { return Ok(()) };
    let [first, second] = [report.get("first")?.parse::<u64>()?, report.get("second")?.parse::<u64>()?];
    ensure!(first == second || first == second + 1, "ext4 is at {first}, xfs at {second}");
    ensure!(report.get("done")? == "yes");
    Ok(())
}
