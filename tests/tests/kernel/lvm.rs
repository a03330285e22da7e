//! The programs themselves in the guest, on thin pools of LVM.

use anyhow::{Result, ensure};

use crate::{block_devices::in_guest, driven::PROGRAMS, guest::Report};

/// A pool with one volume of 32 MiB.
const MAKE: &str = r#"
test -e /sbin || ln -s bin /sbin # LVM loads the modules that it needs
pvcreate -qq /dev/vdb
vgcreate -qq vg /dev/vdb
lvcreate -qq --type thin-pool -L 160M --poolmetadatasize 4M --chunksize 64k -n tp vg
thinbak-server init --repo /tmp/repo >/dev/null 2>&1
own() { lvs --noheadings -o lv_name -S 'lv_tags=thinbak' vg; } # all that is ours
count() { own | wc -l; }
id() { set -- $(lvs --noheadings -o thin_id "$1"); echo "$1"; }
# Nothing is suspended or held, and nothing of ours is left but so many bases and snapshots.
clean() { # NUMBER
  if dmsetup info -c --noheadings -o name,suspended | grep ':Suspended' >&2; then exit 1; fi
  case "$(dmsetup status vg-tp-tpool)" in *" - rw "*) ;; *) dmsetup status vg-tp-tpool >&2; exit 1;; esac
  test "$(count)" = "$1" || { lvs -o lv_name,lv_tags vg >&2; exit 1; }
}
# LVM does all that it did before.
usable() {
  lvcreate -qq -V 4M --thinpool tp -n probe vg
  lvcreate -qq -s -n probe-s vg/probe
  lvremove -qq -y vg/probe-s vg/probe
  vgchange -qq -an vg
  test -z "$(dmsetup ls | grep vg- || true)" || { dmsetup ls >&2; exit 1; }
  vgchange -qq -ay vg
}
"#;

/// A mounted file system: full, incremental, unchanged; each restored and compared with the very snapshot.
const CYCLE: &str = r#"
# The target has another name before the first volume.
thinbak pool status lvm:vg/tp >/tmp/said
grep -q '^status: *0 327680 thin-pool 0 ' /tmp/said
lvcreate -qq -V 32M --thinpool tp -n web vg
mkfs.ext4 -q /dev/vg/web
mount -t ext4 /dev/vg/web /mnt
cp -a /bin /mnt/tools 2>/dev/null || true
archives=$(ls /etc/lvm/archive | wc -l)
mode first lvm:vg/tp/web
test "$(ls /etc/lvm/archive | wc -l)" = "$archives"
grep -q 'thinbak:base' /etc/lvm/backup/vg
clean 1
quiet restore vg/tp/web:1 --to lvm:vg/tp/one
clean 1
lvchange -ay -K "vg/$(own | tr -d ' ')"
cmp "/dev/vg/$(own | tr -d ' ')" /dev/vg/one
lvchange -an "vg/$(own | tr -d ' ')"
e2fsck -fn /dev/vg/one >/dev/null 2>&1
lvremove -qq -y vg/one
dd if=/tmp/tools/content of=/mnt/more bs=1M count=3 status=none
umount /mnt
mode second lvm:vg/tp/web
mode third lvm:vg/tp/web
clean 1
thinbak volume list lvm:vg/tp >/tmp/said
grep -q '^web@thinbak-base' /tmp/said
# In place: refused while it is open, and then bit for bit what it was.
before=$(sha256sum </dev/vg/web)
identity=$(lvs --noheadings -o lv_uuid vg/web)
mount -t ext4 /dev/vg/web /mnt
refused 5 'is open' thinbak restore vg/tp/web:2 --in-place=lvm:vg/tp/web
umount /mnt
dd if=/tmp/tools/content of=/dev/vg/web bs=1M count=5 seek=7 oflag=direct status=none
old=$(id vg/web)
quiet restore vg/tp/web:2 --in-place
test "$(sha256sum </dev/vg/web)" = "$before"
e2fsck -fn /dev/vg/web >/dev/null 2>&1
test "$(lvs --noheadings -o lv_uuid vg/web)" = "$identity"
test "$(id vg/web)" != "$old"
test -z "$(lvs --noheadings -o lv_tags vg/web | tr -d ' ')"
clean 1
mode placed lvm:vg/tp/web
usable
# A job takes the volumes with a tag.
lvcreate -qq -V 4M --thinpool tp -n other vg
lvchange -qq --addtag nightly vg/web
printf '[[job]]\nname = "tagged"\nvolumes = ["lvm:vg/tp/@nightly"]\n' >/tmp/agent.toml
THINBAK_CONFIG=/tmp/agent.toml quiet job run tagged
refused 10 'not in the repository' thinbak generation list vg/tp/other
lvremove -qq -y vg/other
quiet backup lvm:vg/tp/web
clean 1
# The pool is gone, and made anew.
sum=$(sha256sum </dev/vg/web)
thinbak pool shape vg/tp --volume-group | grep -q 'type = "thin-pool"'
refused 5 'is not empty' thinbak pool rebuild vg/tp --to lvm:vg/tp
lvremove -qq -y vg/tp
refused 10 'lvcreate --type thin-pool' thinbak pool rebuild vg/tp --to lvm:vg/tp
lvcreate -qq --type thin-pool -L 160M --poolmetadatasize 4M --chunksize 64k -n tp vg
quiet pool rebuild vg/tp --to lvm:vg/tp
test "$(sha256sum </dev/vg/web)" = "$sum"
clean 0
echo "done yes"
"#;

/// What users do with LVM, or with thinbak, in between.
const CHANGES: &str = r#"
lvcreate -qq -V 32M --thinpool tp -n web vg
dd if=/tmp/tools/content of=/dev/vg/web bs=1M count=8 oflag=direct status=none
thinbak volume export lvm:vg/tp/web 2>/dev/null | cmp - /dev/vg/web
quiet backup lvm:vg/tp/web
clean 1
# Its snapshot takes its place: the device id moves, the base stays right.
lvcreate -qq -s -n web-s -kn vg/web
dd if=/tmp/tools/content of=/dev/vg/web-s bs=1M skip=4 seek=20 count=2 oflag=direct status=none
lvchange -an vg/web; lvchange -an vg/web-s
lvconvert -qq -y --merge vg/web-s
lvchange -ay vg/web
mode merged lvm:vg/tp/web
quiet restore vg/tp/web:latest --to-file /tmp/file
cmp /tmp/file /dev/vg/web
# Another name and size.
lvrename vg web www >/dev/null
lvextend -qq -L 36M vg/www
mode renamed lvm:vg/tp/www
quiet restore vg/tp/www:latest --to lvm:vg/tp/copy
cmp /dev/vg/www /dev/vg/copy
lvremove -qq -y vg/copy
# A base that somebody wrote to is none.
base=$(own | tr -d ' ')
lvchange -prw "vg/$base"
lvchange -ay -K "vg/$base"
dd if=/tmp/tools/content of="/dev/vg/$base" bs=64k count=1 oflag=direct status=none
lvchange -an "vg/$base"
mode written lvm:vg/tp/www
clean 1
# And one that is gone.
lvremove -qq -y "vg/$(own | tr -d ' ')"
mode gone lvm:vg/tp/www
clean 1
# Made anew under the same name: another volume, and its base is of no use.
lvremove -qq -y vg/www
lvcreate -qq -V 36M --thinpool tp -n www vg
refused 5 'adopt' thinbak backup lvm:vg/tp/www
clean 0
thinbak -q --json backup --adopt lvm:vg/tp/www >/tmp/summary
echo "anew $(sed -n 's/.*"mode":"\([a-z]*\)".*/\1/p' /tmp/summary)"
clean 1
# Volumes by thinbak.
truncate -s 10M /tmp/image
dd if=/tmp/tools/content of=/tmp/image bs=100000 seek=3 count=20 conv=notrunc status=none
quiet volume import lvm:vg/tp/image </tmp/image
head -c 10485760 /dev/vg/image | cmp - /tmp/image
echo "rounded $(blockdev --getsize64 /dev/vg/image)"
quiet volume create lvm:vg/tp/empty --size 8M
quiet volume import lvm:vg/tp/empty </dev/null
head -c 8000000 /tmp/tools/content | thinbak -q volume import lvm:vg/tp/empty >/dev/null
head -c 8000000 /dev/vg/empty | cmp -n 8000000 - /tmp/tools/content
quiet volume resize lvm:vg/tp/empty --size 12M
refused 5 'not made smaller' thinbak volume resize lvm:vg/tp/empty --size 4M
quiet volume snapshot lvm:vg/tp/image@now
lvs --noheadings -o lv_tags vg | grep -q 'thinbak:snapshot=now'
refused 5 'exists already' thinbak volume snapshot lvm:vg/tp/image@now
thinbak volume export lvm:vg/tp/image@now 2>/dev/null | cmp - /dev/vg/image
refused 5 'one moment' thinbak volume snapshot lvm:vg/tp/image@a lvm:vg/tp/empty@a
refused 5 'one moment' thinbak backup --group lvm:vg/tp/image lvm:vg/tp/empty
refused 5 'has 1 snapshots' thinbak volume remove lvm:vg/tp/image
quiet backup lvm:vg/tp/image lvm:vg/tp/empty
clean 4
quiet volume remove lvm:vg/tp/image@now
quiet volume remove lvm:vg/tp/image
quiet volume remove lvm:vg/tp/empty
clean 1
quiet msnap reserve lvm:vg/tp
refused 11 'by thinbak' thinbak msnap reserve lvm:vg/tp
thinbak dump --metadata-snap lvm:vg/tp >/tmp/ours
thin_dump -m /dev/mapper/vg-tp_tmeta >/tmp/theirs
cmp /tmp/ours /tmp/theirs
device=$(id vg/www)
thinbak delta --metadata-snap --from "$device" --to "$device" lvm:vg/tp >/tmp/ours
thin_delta -m --thin1 "$device" --thin2 "$device" /dev/mapper/vg-tp_tmeta >/tmp/theirs
cmp /tmp/ours /tmp/theirs
quiet msnap release lvm:vg/tp
thinbak pool list >/tmp/said
grep -q '^vg/tp .*lvm:vg/tp' /tmp/said
echo "line $(dmsetup status vg-tp-tpool)"
echo "ours $(thinbak pool status lvm:vg/tp | sed -n 's/^status: *//p')"
clean 1
usable
vgchange -qq -an vg
dmsetup ls | grep -q vg- && exit 1
echo "done yes"
"#;

/// What is refused, and what a killed process leaves.
const BAD: &str = r#"
lvcreate -qq -V 32M --thinpool tp -n web vg
lvcreate -qq -L 4M -n thick vg
lvcreate -qq --type thin-pool -L 8M --poolmetadatasize 4M -n other vg
lvcreate -qq -V 4M --thinpool other -n elsewhere vg
dd if=/tmp/tools/content of=/dev/vg/web bs=1M count=8 oflag=direct status=none
refused 10 'no volume group nothing' thinbak pool status lvm:nothing/tp
refused 10 'no volume nothing' thinbak pool status lvm:vg/nothing
refused 10 'no thin pool' thinbak pool status lvm:vg/thick
refused 10 'thin volume of pool tp, no pool' thinbak pool status lvm:vg/web
refused 2 'names no pool' thinbak pool status lvm:vg
refused 10 'no volume .nothing' thinbak backup lvm:vg/tp/nothing
refused 2 'no thin volume' thinbak backup lvm:vg/tp/thick
refused 2 'of pool other' thinbak backup lvm:vg/tp/elsewhere
refused 2 'no thin volume' thinbak volume create lvm:vg/tp/thick --size 4M
refused 2 "LVM's commands" thinbak pool resize lvm:vg/tp --size 1G
refused 5 'lvm:VG/POOL' thinbak pool status dm:vg-tp-tpool
lvchange -an vg/elsewhere; lvchange -an vg/other
refused 1 'not active' thinbak pool status lvm:vg/other
refused 1 'install lvm2' env PATH=/tmp/tools /tmp/tools/thinbak pool status lvm:vg/tp
echo 'nobody:x:65534:65534::/tmp:/bin/sh' >>/etc/passwd
refused 12 'ermission denied' env THINBAK_STATE_DIR=/tmp/nobody \
  start-stop-daemon -S -q -c nobody -x /tmp/tools/thinbak -- pool status lvm:vg/tp

# A stranger's metadata snapshot is waited for and left alone.
dmsetup message vg-tp-tpool 0 reserve_metadata_snap
refused 11 'by somebody else' thinbak backup lvm:vg/tp/web
refused 11 'not known to be' thinbak msnap release lvm:vg/tp
case "$(dmsetup status vg-tp-tpool)" in *" - rw "*) exit 1;; esac
dmsetup message vg-tp-tpool 0 release_metadata_snap
clean 0

# LVM takes a device that has the id already for its own: not we.
next=$(($(id vg/web) + 1))
dmsetup message vg-tp-tpool 0 "create_snap $next $(id vg/web)"
refused 1 'an older one' thinbak volume create lvm:vg/tp/new --size 4M
grep -q "hint:.*vg/thinbak_" /tmp/said
quiet volume list lvm:vg/tp
clean 1
stranger=$(own | tr -d ' ')
test "$(id "vg/$stranger")" = "$next"
dmsetup create stranger --readonly --table "0 65536 thin /dev/mapper/vg-tp-tpool $next"
cmp /dev/mapper/stranger /dev/vg/web
dmsetup remove stranger
lvremove -qq -y "vg/$stranger"
clean 0
# Of a snapshot it says so: nothing of the kind is taken for ours and removed.
untouched() { # ID...: they are there, and what they were made of; they go
  for one in "$@"; do
    dmsetup create stranger --readonly --table "0 65536 thin /dev/mapper/vg-tp-tpool $one"
    cmp /dev/mapper/stranger /dev/vg/web
    dmsetup remove stranger
    dmsetup message vg-tp-tpool 0 "delete $one"
  done
}
quiet volume create lvm:vg/tp/two --size 4M
next=$(($(id vg/two) + 1))
dmsetup message vg-tp-tpool 0 "create_snap $next $(id vg/web)"
dmsetup message vg-tp-tpool 0 "create_snap $((next + 1)) $(id vg/web)"
refused 1 'File exists' thinbak backup lvm:vg/tp/web lvm:vg/tp/two
quiet volume list lvm:vg/tp
untouched "$next" $((next + 1))
clean 0
# The second only.
dmsetup message vg-tp-tpool 0 "create_snap $((next + 1)) $(id vg/web)"
refused 1 'File exists' thinbak backup lvm:vg/tp/two lvm:vg/tp/web
quiet volume list lvm:vg/tp
untouched $((next + 1))
clean 0
quiet volume remove lvm:vg/tp/two

# Nothing is asked of LVM while the origin is suspended.
dmsetup suspend vg-web
refused 11 'it is suspended' thinbak backup lvm:vg/tp/web
dmsetup resume vg-web
clean 0

# What is read from outside of the pool, also by inheritance, and what others outside of it need.
lvchange -an vg/thick; lvchange -pr vg/thick
lvcreate -qq -s --thinpool vg/tp -n over vg/thick
lvcreate -qq -s -kn -n over-s vg/over
refused 5 'external origin' thinbak backup lvm:vg/tp/over
refused 5 'external origin' thinbak backup lvm:vg/tp/over-s
lvremove -qq -y vg/over-s vg/over
quiet volume create lvm:vg/tp/needed --size 4M
lvcreate -qq -s -L 4M -n cow vg/needed
refused 5 'depends on it' thinbak volume remove lvm:vg/tp/needed
lvremove -qq -y vg/cow
quiet volume remove lvm:vg/tp/needed
quiet backup lvm:vg/tp/web
clean 1

# Nor does it hurt somebody's device that a volume is to be replaced.
next=$(($(id "vg/$(own | tr -d ' ')") + 1))
dmsetup message vg-tp-tpool 0 "create_snap $next $(id vg/web)"
refused 1 'File exists' thinbak restore vg/tp/web:latest --in-place=lvm:vg/tp/web
quiet volume list lvm:vg/tp
untouched "$next"
clean 1

# SIGKILL, as soon as something is there.
until_killed() { # WHAT_IS_LOOKED_FOR COMMAND...
  seen=$1; shift
  for try in 1 2 3 4 5; do
    thinbak -q "$@" >/dev/null 2>&1 &
    worker=$!
    while kill -0 $worker 2>/dev/null; do
      if eval "$seen"; then kill -9 $worker; wait $worker || true; return 0; fi
    done
    wait $worker || true
    lvremove -qq -y vg/copy || true
    dd if=/tmp/tools/content of=/dev/vg/web bs=64k count=1 seek=$try skip=$((try * 3)) oflag=direct status=none
  done
  echo "never: $seen" >&2
  exit 1
}
settled() { # after a while, as a command of LVM goes on alone
  for wait in 1 2 3 4 5 6 7 8 9 10; do
    if ls -l /proc/[0-9]*/exe 2>/dev/null | grep -q 'bin/lvm$'; then sleep 1; fi
  done
  quiet volume list lvm:vg/tp
  clean 1
}
dd if=/tmp/tools/content of=/dev/vg/web bs=1M count=2 skip=2 oflag=direct status=none
book='/tmp/state/lvm/*.json'
# While the snapshot is made, and when it is there.
until_killed 'grep -q "\"candidate\"" $book' backup lvm:vg/tp/web
settled
until_killed 'grep -q thinbak:candidate /etc/lvm/backup/vg' backup lvm:vg/tp/web
settled
# While a new volume is written, and before it has its name.
until_killed 'dmsetup ls | grep -q thinbak_' restore vg/tp/web:latest --to lvm:vg/tp/copy
settled
refused 10 'no volume' thinbak volume export lvm:vg/tp/copy
# While the volume is replaced.
sum=$(sha256sum </dev/vg/web)
until_killed 'grep -q thinbak:activate /etc/lvm/backup/vg' restore vg/tp/web:latest --in-place=lvm:vg/tp/web
settled
echo "after $(test -e /dev/mapper/vg-web && echo active)"
test -z "$(lvs --noheadings -o lv_tags vg/web | tr -d ' ')"
quiet restore vg/tp/web:latest --in-place=lvm:vg/tp/web
mode last lvm:vg/tp/web
clean 1
lvchange -ay vg/other
usable
echo "done yes"
"#;

fn on_a_pool(script: &str) -> Result<Option<Report>> {
    in_guest(&format!("{PROGRAMS}{MAKE}{script}"))
}

#[test]
fn volumes_of_lvm_are_backed_up_and_restored_bit_for_bit() -> Result<()> {
    let Some(report) = on_a_pool(CYCLE)? else { return Ok(()) };
    ensure!(report.get("first")? == "full");
    ensure!(report.get("second")? == "incremental");
    ensure!(report.get("third")? == "unchanged");
    ensure!(report.get("placed")? == "incremental");
    ensure!(report.get("done")? == "yes");
    Ok(())
}

#[test]
fn whatever_is_done_to_volumes_of_lvm_is_noticed() -> Result<()> {
    let Some(report) = on_a_pool(CHANGES)? else { return Ok(()) };
    ensure!(report.get("merged")? == "incremental");
    ensure!(report.get("renamed")? == "incremental");
    ensure!(report.get("written")? == "compared");
    ensure!(report.get("gone")? == "compared");
    ensure!(report.get("anew")? == "full");
    ensure!(report.get("rounded")? == "12582912");
    ensure!(report.get("line")? == report.get("ours")?, "the status line is not the kernel's");
    ensure!(report.get("done")? == "yes");
    Ok(())
}

#[test]
fn whatever_is_wrong_with_a_pool_of_lvm_is_told_and_nothing_is_left_behind() -> Result<()> {
    let Some(report) = on_a_pool(BAD)? else { return Ok(()) };
    ensure!(report.get("after")? == "active", "the volume was left inactive");
    ensure!(report.get("done")? == "yes");
    Ok(())
}
