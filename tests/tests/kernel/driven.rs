//! The programs themselves in the guest, on thin pools that the kernel runs.

use anyhow::{Result, ensure};

use crate::{block_devices::in_guest, guest::Report};

/// Runs the programs as they are installed on a host, with the guest's own libraries: thinbak starts itself again.
pub(crate) const PROGRAMS: &str = r#"
mkdir -p /tmp/tools /tmp/repo
mount -t ext4 -o ro /dev/vdc /tmp/tools
export THINBAK_STATE_DIR=/tmp/state THINBAK_REPOSITORY=/tmp/repo NO_COLOR=1 PATH=$PATH:/tmp/tools
quiet() { thinbak -q "$@" >/tmp/said 2>&1 || { status=$?; echo "thinbak $*: $status" >&2; cat /tmp/said >&2; return 1; }; }
refused() { # CODE WORDS_OF_THE_MESSAGE COMMAND...
  code=$1 words=$2; shift 2
  status=0
  "$@" >/tmp/said 2>&1 || status=$?
  test "$status" = "$code" && grep -q "$words" /tmp/said || { echo "$*: $status, not $code" >&2; cat /tmp/said >&2; return 1; }
}
mode() { # KEY VOLUME: backs up, and says how that was done
  thinbak -q --json backup "$2" >/tmp/summary || { cat /tmp/summary >&2; return 1; }
  echo "$1 $(sed -n 's/.*"mode":"\([a-z]*\)".*/\1/p' /tmp/summary)"
  echo "$1.held $(sed -n 's/.*"msnap_held_seconds":\([0-9.e-]*\).*/\1/p' /tmp/summary)"
}
id_of() { # PATTERN_OF_A_NAME
  thinbak --json volume list dm:pool | tr -d ' \n' | sed 's/},{/}\n{/g' | sed -n "s/.*\"device_id\":\([0-9]*\).*\"name\":\"$1\".*/\1/p"
}
up() { dmsetup create "$1" --readonly --table "0 65536 thin /dev/mapper/pool $2"; } # NAME DEVICE
held() { set -- $(dmsetup status pool); echo "$7"; }
# Nothing is suspended, held or left.
tidy() {
  if dmsetup info -c --noheadings -o name,suspended | grep ':Suspended' >&2; then exit 1; fi
  if dmsetup ls | grep '^thinbak-' >&2; then exit 1; fi
  case "$(dmsetup status pool)" in *" - rw "*) ;; *) dmsetup status pool >&2; exit 1;; esac
}
"#;

const MAKE: &str = r#"
pool_up 128
message create_thin 0
dmsetup create web --table "0 65536 thin /dev/mapper/pool 0"
thinbak-server init --repo /tmp/repo >/dev/null 2>&1
"#;

/// A mounted file system: full, incremental, unchanged; each restored and compared with the very snapshot.
const CYCLE: &str = r#"
mkfs.ext4 -q /dev/mapper/web
mount -t ext4 /dev/mapper/web /mnt
cp -a /bin /mnt/tools
mode first dm:pool/web
tidy
quiet restore pool/web:1 --to dm:pool/one
tidy
up base "$(id_of 'web@thinbak-base-[0-9a-f-]*1')"
up one "$(id_of one)"
cmp /dev/mapper/base /dev/mapper/one
e2fsck -fn /dev/mapper/one >/dev/null 2>&1
dmsetup remove base; dmsetup remove one
dd if=/tmp/tools/content of=/mnt/more bs=1M count=3 status=none
rm /mnt/tools/e2fsck
umount /mnt
mode second dm:pool/web
mode third dm:pool/web
quiet restore pool/web:2 --to dm:pool/two
up two "$(id_of two)"
cmp /dev/mapper/web /dev/mapper/two
e2fsck -fn /dev/mapper/two >/dev/null 2>&1
dmsetup remove two
tidy
"#;

/// Everything else that is done to volumes, and the text of metadata.
const MORE: &str = r#"
thinbak volume export dm:pool/web 2>/dev/null | cmp - /dev/mapper/web
truncate -s 8M /tmp/image
dd if=/tmp/tools/content of=/tmp/image bs=100000 seek=3 count=20 conv=notrunc status=none
quiet volume import dm:pool/image </tmp/image
thinbak volume export dm:pool/image 2>/dev/null | cmp - /tmp/image
quiet volume create dm:pool/empty --size 16M
quiet volume snapshot dm:pool/web@now dm:pool/image@now
refused 5 'exists already' thinbak volume snapshot dm:pool/web@now
thinbak volume export dm:pool/web@now 2>/dev/null | cmp - /dev/mapper/web
refused 5 'has 1 snapshots' thinbak volume remove dm:pool/image
quiet volume remove dm:pool/image@now
quiet volume remove dm:pool/image
quiet volume remove dm:pool/web@now
refused 10 'no volume' thinbak backup dm:pool/image
quiet msnap reserve dm:pool
refused 11 'by thinbak' thinbak msnap reserve dm:pool
thinbak dump --metadata-snap dm:pool >/tmp/ours
thin_dump -m /dev/vda >/tmp/theirs
cmp /tmp/ours /tmp/theirs
thinbak delta --metadata-snap --from 0 --to 0 dm:pool >/tmp/ours
thin_delta -m --thin1 0 --thin2 0 /dev/vda >/tmp/theirs
cmp /tmp/ours /tmp/theirs
quiet msnap release dm:pool
thinbak pool list | grep -q '^pool .*dm:pool'
echo "line $(dmsetup status pool)"
echo "ours $(thinbak pool status dm:pool | sed -n 's/^status: *//p')"
tidy
# No transaction id is moved, and nothing is wrong with what was made.
case "$(dmsetup status pool)" in "0 "*" thin-pool 0 "*) ;; *) exit 1;; esac
down
check
echo "done yes"
"#;

/// What is refused, and what a killed process leaves.
const BAD: &str = r#"
dd if=/tmp/tools/content of=/dev/mapper/web bs=1M count=8 oflag=direct status=none
refused 10 'no device-mapper device nothing' thinbak pool status dm:nothing
refused 10 'no thin pool' thinbak backup dm:web/x
refused 10 'no volume' thinbak backup dm:pool/nothing
refused 2 'made and changed with dmsetup' thinbak pool resize dm:pool --size 1G
refused 5 'not empty' thinbak volume import dm:pool/web </tmp/tools/content
dmsetup create lvm-like --uuid LVM-0123456789abcdef-tpool --notable
refused 5 "LVM's" thinbak pool status dm:lvm-like
dmsetup remove lvm-like
dmsetup create empty --notable
refused 10 'not active' thinbak pool status dm:empty
dmsetup remove empty
dmsetup suspend pool
refused 11 'suspended' thinbak backup dm:pool/web
dmsetup resume pool
mv /dev/mapper/control /dev/mapper/control-
refused 1 'No such file' thinbak pool status dm:pool
mv /dev/mapper/control- /dev/mapper/control
echo 'nobody:x:65534:65534::/tmp:/bin/sh' >>/etc/passwd
refused 12 'ermission denied' env THINBAK_STATE_DIR=/tmp/nobody \
  start-stop-daemon -S -q -c nobody -x /tmp/tools/thinbak -- pool status dm:pool

# A stranger's metadata snapshot is waited for and left alone.
message reserve_metadata_snap
before=$(held)
refused 11 'by somebody else' thinbak backup dm:pool/web
refused 11 'not known to be' thinbak msnap release dm:pool
thinbak msnap show dm:pool >/tmp/said
grep -q 'somebody else' /tmp/said
test "$before" = "$(held)"
message release_metadata_snap
tidy

# A table that somebody has loaded is not put in force.
dmsetup reload web --table "0 65536 thin /dev/mapper/pool 0"
refused 11 'a new table is loaded' thinbak backup dm:pool/web
dmsetup clear web
# Another device under the name of a known volume is not that volume.
dmsetup remove web
message create_thin 5
dmsetup create web --table "0 65536 thin /dev/mapper/pool 5"
refused 5 'device 0, but the active device of that name is 5' thinbak backup dm:pool/web
dmsetup remove web
message delete 5
dmsetup create web --table "0 65536 thin /dev/mapper/pool 0"
tidy

# What is left suspended is resumed when its process dies, and when that says nothing for too long.
dmsetup suspend web
refused 1 'resumed web' sh -c ': | thinbak resume-if-left web'
tidy
dmsetup suspend web
(sleep 16; dmsetup info -c --noheadings -o suspended web >/tmp/seen) | refused 1 'resumed web' thinbak resume-if-left web
grep -q Active /tmp/seen
tidy
# And again, when one is suspended after that.
(sleep 12; dmsetup suspend web; sleep 14; dmsetup info -c --noheadings -o suspended web >/tmp/seen; printf .) |
  refused 1 'resumed web' thinbak resume-if-left web
grep -q Active /tmp/seen
tidy

# SIGKILL while the metadata snapshot is held, on metadata that are slow to read: the next one releases it and works.
modprobe dm-delay
down
delay() { dmsetup suspend slow; dmsetup reload slow --table "0 $size delay /dev/vda 0 $1 /dev/vda 0 0"; dmsetup resume slow; }
size=$(blockdev --getsz /dev/vda)
dmsetup create slow --table "0 $size delay /dev/vda 0 0 /dev/vda 0 0"
dmsetup create pool --table "0 $sectors thin-pool /dev/mapper/slow /dev/vdb 128 0"
dmsetup create web --table "0 65536 thin /dev/mapper/pool 0"
killed=no
for try in 1 2 3 4 5 6; do
  delay 400
  thinbak -q backup dm:pool/web >/dev/null 2>&1 &
  worker=$!
  # Until it has noted what it holds.
  while kill -0 $worker 2>/dev/null; do
    if grep -q '"held"' /tmp/state/dm/*.json; then kill -9 $worker; killed=yes; break; fi
  done
  wait $worker || true
  delay 0
  test $killed = no || break
done
echo "killed $killed"
case "$(held)" in -) exit 1;; esac
quiet backup dm:pool/web
tidy
echo "devices $(thinbak --json volume list dm:pool | tr -d ' \n' | sed 's/},{/}\n{/g' | grep -c device_id)"
# And before it could note it: that is not guessed.
message reserve_metadata_snap
sed -i 's/"msnap": null/"msnap": "intended"/' /tmp/state/dm/*.json
before=$(held)
refused 11 'killed while it reserved' thinbak backup dm:pool/web
test "$before" = "$(held)"
quiet msnap release --force dm:pool
tidy

# SIGKILL while a head is written.
for try in 1 2 3 4 5 6; do
  thinbak -q restore pool/web:latest --to "dm:pool/copy$try" >/dev/null 2>&1 &
  worker=$!
  while kill -0 $worker 2>/dev/null; do
    if dmsetup ls | grep -q '^thinbak-'; then kill -9 $worker; break; fi
  done
  wait $worker || true
  ! dmsetup ls | grep -q '^thinbak-' || break
done
quiet volume list dm:pool
tidy
quiet restore pool/web:latest --to dm:pool/whole
up whole "$(id_of whole)"
cmp /dev/mapper/web /dev/mapper/whole
down
dmsetup remove slow
check
echo "done yes"
"#;

/// With the programs and a pool of the kernel that has an empty volume, `web`.
pub(crate) fn on_a_pool(script: &str) -> Result<Option<Report>> {
    in_guest(&format!("{PROGRAMS}{MAKE}{script}"))
}

#[test]
fn volumes_of_a_kernel_pool_are_backed_up_and_restored_bit_for_bit() -> Result<()> {
    let Some(report) = on_a_pool(&format!("{CYCLE}{MORE}"))? else { return Ok(()) };
    ensure!(report.get("first")? == "full");
    ensure!(report.get("second")? == "incremental");
    ensure!(report.get("third")? == "unchanged");
    let held = ["first.held", "second.held", "third.held"].map(|key| report.get(key));
    println!("metadata snapshots were held for {held:?} s");
    ensure!(report.get("line")? == report.get("ours")?, "the status line is not the kernel's");
    ensure!(report.get("done")? == "yes");
    Ok(())
}

#[test]
fn whatever_is_wrong_with_a_kernel_pool_is_told_and_nothing_is_left_behind() -> Result<()> {
    let Some(report) = on_a_pool(BAD)? else { return Ok(()) };
    ensure!(report.get("killed")? == "yes", "nobody was killed while he held the metadata snapshot");
    // The volume and its base.
    ensure!(report.get("devices")? == "2", "{} devices", report.get("devices")?);
    ensure!(report.get("done")? == "yes");
    Ok(())
}
