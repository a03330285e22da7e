//! A pool of the kernel or LVM that is gone is made anew from what its backups stored.

use anyhow::{Result, ensure};

use crate::{block_devices::in_guest, driven, driven::PROGRAMS};

/// Two volumes of dmsetup's; one is not backed up. A job stores the metadata, as the kernel's own tool prints them.
const DM: &str = r#"
dd if=/tmp/tools/content of=/dev/mapper/web bs=1M count=9 oflag=direct status=none
message create_thin 1
dmsetup create db --table "0 32768 thin /dev/mapper/pool 1"
dd if=/tmp/tools/content of=/dev/mapper/db bs=1M skip=4 seek=3 count=5 oflag=direct status=none
quiet backup dm:pool/web dm:pool/db
printf '[[job]]\nname = "all"\nvolumes = ["dm:pool/*"]\n' >/tmp/agent.toml
export THINBAK_CONFIG=/tmp/agent.toml
quiet job run all
test "$(held)" = -
thinbak generation list "$(hostname)/pool/.metadata" >/tmp/said
grep -q '/pool/.metadata *1 ' /tmp/said
quiet restore pool/.metadata:1 --to-file /tmp/text
test "$(grep -c '<device dev_id=' /tmp/text)" = 4
web=$(sha256sum </dev/mapper/web) db=$(sha256sum </dev/mapper/db)
dmsetup remove db; dmsetup remove web
down
thin_restore -q -i /tmp/text -o /dev/vda
check
dd if=/dev/zero of=/dev/vda bs=64k count=1 oflag=direct status=none
refused 10 'no device-mapper device' thinbak pool rebuild pool --to dm:pool
pool_up 128
quiet pool rebuild pool --to dm:pool --dry-run
test "$(dmsetup status pool | cut -d' ' -f6 | cut -d/ -f1)" = 0
quiet pool rebuild pool --to dm:pool
up web "$(id_of web)"
dmsetup create db --readonly --table "0 32768 thin /dev/mapper/pool $(id_of db)"
test "$(sha256sum </dev/mapper/web)" = "$web"
test "$(sha256sum </dev/mapper/db)" = "$db"
refused 5 'not empty' thinbak pool rebuild pool --to dm:pool
quiet pool rebuild pool --to dm:pool --resume
tidy
dmsetup remove db; dmsetup remove web
down
check
echo "done yes"
"#;

/// A volume, a snapshot of it that is a volume too and was written, and one of that.
const LVM: &str = r#"
test -e /sbin || ln -s bin /sbin # LVM loads the modules that it needs
pvcreate -qq /dev/vdb
vgcreate -qq vg /dev/vdb
pool() { lvcreate -qq --type thin-pool -L 160M --poolmetadatasize 4M --chunksize 64k -n tp vg; }
used() { set -- $(dmsetup status vg-tp-tpool); echo "${6%/*}"; }
pool
thinbak-server init --repo /tmp/repo >/dev/null 2>&1
lvcreate -qq -V 32M --thinpool tp -n web vg
dd if=/tmp/tools/content of=/dev/vg/web bs=1M count=20 oflag=direct status=none
lvcreate -qq -s -kn -n a-copy vg/web
dd if=/tmp/tools/content of=/dev/vg/a-copy bs=64k skip=7 seek=100 count=8 oflag=direct status=none
lvcreate -qq -s -kn -n newest vg/a-copy
dd if=/dev/zero of=/dev/vg/newest bs=64k seek=31 count=4 oflag=direct status=none
quiet backup lvm:vg/tp/web lvm:vg/tp/a-copy lvm:vg/tp/newest
thinbak pool shape vg/tp >/tmp/said
grep -q '^a-copy .*snapshot of web' /tmp/said && grep -q '^newest .*snapshot of a-copy' /tmp/said
thinbak pool shape vg/tp --volume-group | grep -q 'device_id = 1'
sums() { for name in web a-copy newest; do sha256sum </dev/vg/$name; done; }
before=$(sums) blocks=$(used)
lvremove -qq -y vg/tp
refused 10 'tp' thinbak pool rebuild vg/tp --to lvm:vg/tp
grep -q 'lvcreate --type thin-pool -L 167772160b --chunksize 64k -n tp vg' /tmp/said
pool
quiet pool rebuild vg/tp --to lvm:vg/tp
for name in web a-copy newest; do lvchange -ay -K vg/$name; done
test "$(sums)" = "$before" || { sums >&2; echo "$before" >&2; exit 1; }
echo "blocks $blocks"
echo "again $(used)"
test -z "$(lvs --noheadings -o lv_tags vg | tr -d ' \n')" || { lvs -o lv_name,lv_tags vg >&2; exit 1; }
refused 5 'not empty' thinbak pool rebuild vg/tp --to lvm:vg/tp
quiet pool rebuild vg/tp --to lvm:vg/tp --resume
lvremove -qq -y vg/newest
quiet pool rebuild vg/tp --to lvm:vg/tp --resume
test "$(sums)" = "$before"
vgchange -qq -an vg
vgchange -qq -ay vg
echo "done yes"
"#;

#[test]
fn a_kernel_pool_that_is_gone_is_made_anew() -> Result<()> {
    let Some(report) = driven::on_a_pool(DM)? else { return Ok(()) };
    ensure!(report.get("done")? == "yes");
    Ok(())
}

#[test]
fn a_pool_of_lvm_that_is_gone_is_made_anew_with_what_its_volumes_shared() -> Result<()> {
    let Some(report) = in_guest(&format!("{PROGRAMS}{LVM}"))? else { return Ok(()) };
    let (blocks, again) = (report.get("blocks")?.parse::<u64>()?, report.get("again")?.parse::<u64>()?);
    ensure!(again <= blocks + 8, "{again} blocks where there were {blocks}");
    ensure!(report.get("done")? == "yes");
    Ok(())
}
