//! Many volumes of a pool of the kernel in one backup, of which few were written: what that costs the pool.

use anyhow::Result;

use crate::{block_devices::in_guest, driven::PROGRAMS, guest::Report};

/// How much there is, and how often it is done.
pub(crate) struct Amount {
    /// Volumes of the pool, of 64 blocks, 16 of them mapped.
    pub(crate) volumes: usize,
    /// Of which are written before each backup, 2 blocks each.
    pub(crate) changed: usize,
    pub(crate) rounds: usize,
    /// Of the rounds are also done with the tools that scripts use.
    pub(crate) by_tools: usize,
}

/// A volume is `$disks/v0`, `$disks/v1`, ...; the pool `$pool` to us, `$target` to dmsetup, its metadata `$meta`.
const DM: &str = r#"
pool=dm:pool target=pool meta=/dev/vda disks=/dev/mapper
pool_up 128
make() { dmsetup message pool 0 "create_thin $1"; dmsetup create "v$1" --table "0 8192 thin /dev/mapper/pool $1"; }
snap() { # VOLUME NEW
  dmsetup suspend "v$1"
  dmsetup message pool 0 "create_snap $2 $1"
  dmsetup resume "v$1"
}
unsnap() { dmsetup message pool 0 "delete $2"; } # VOLUME SNAPSHOT
number() { echo "$2"; } # VOLUME SNAPSHOT
open_snap() { dmsetup create copied --readonly --table "0 8192 thin /dev/mapper/pool $2"; copied=/dev/mapper/copied; }
close_snap() { dmsetup remove copied; }
"#;

/// LVM gives the ids; a snapshot is `vg/sN`.
const LVM: &str = r#"
pool=lvm:vg/tp target=vg-tp-tpool meta=/dev/mapper/vg-tp_tmeta disks=/dev/vg
test -e /sbin || ln -s bin /sbin # LVM loads the modules that it needs
pvcreate -qq /dev/vdb
vgcreate -qq vg /dev/vdb
lvcreate -qq --type thin-pool -L 160M --poolmetadatasize 4M --chunksize 64k -n tp vg
make() { lvcreate -qq -V 4M --thinpool tp -n "v$1" vg; }
snap() { lvcreate -qq -s -n "s$2" "vg/v$1"; }
unsnap() { lvremove -qq -y "vg/s$2"; }
number() { set -- $(lvs --noheadings -o thin_id "vg/s$2"); echo "$1"; }
open_snap() { lvchange -qq -ay -K "vg/s$2"; copied=/dev/vg/s$2; }
close_snap() { lvchange -qq -an "vg/s$2"; }
"#;

/// Times are in hundredths of a second, by the kernel's clock: no program is started to read it.
const RUN: &str = r#"
thinbak-server init --repo /tmp/repo >/dev/null 2>&1
cp /tmp/tools/content /tmp/content
now() { read -r up _ </proc/uptime; now="${up%.*}${up#*.}"; }
clock() { thinbak --json pool status "$pool" | tr -d ' \n' | sed 's/.*"snapshot_clock":\([0-9]*\).*/\1/'; }
write() { # VOLUME FROM TO COUNT, in blocks
  dd if=/tmp/content of="$disks/v$1" bs=64k skip="$2" seek="$3" count="$4" oflag=direct conv=notrunc status=none
}
names= n=0
while [ $n -lt $volumes ]; do make $n; write $n $n 0 16; names="$names $pool/v$n"; n=$((n + 1)); done
now; begin=$now
quiet backup $names
now; echo "first $((now - begin))"
# The snapshot before of volume N is 1000 + N, in the next round 2000 + N.
if [ $by_tools -gt 0 ]; then
  n=0; while [ $n -lt $volumes ]; do snap $n $((1000 + n)); n=$((n + 1)); done
fi
round=1
while [ $round -le $rounds ]; do
  n=0
  while [ $n -lt $changed ]; do
    write $(((n * volumes / changed + round) % volumes)) $((round * 2 + n)) $((round % 14)) 2
    n=$((n + 1))
  done
  before=$(clock)
  now; begin=$now
  RUST_LOG=thinbak_agent=debug thinbak -q --json backup $names >/tmp/summary 2>/tmp/log || { tail -20 /tmp/log /tmp/summary >&2; exit 1; }
  now; wall=$((now - begin))
  after=$(clock)
  modes() { grep -c "\"mode\":\"$1\"" /tmp/summary || true; }
  echo "ours $wall $((after - before)) $(grep -c 'reserve_metadata_snap' /tmp/log) $(modes unchanged) $(modes incremental)"
  sed -n 's/.*held_us=\([0-9]*\).*/held \1/p' /tmp/log
  sed -n 's/.*sent=\([a-z]*\)_metadata_snap took_us=\([0-9]*\).*/\1 \2/p' /tmp/log
  if [ $round -le $by_tools ]; then
    old=$((round * 1000)) new=$((round * 1000 + 1000))
    now; at0=$now
    n=0; while [ $n -lt $volumes ]; do snap $n $((new + n)); n=$((n + 1)); done
    now; at1=$now
    n=0; while [ $n -lt $volumes ]; do echo "$n $(number $n $((old + n))) $(number $n $((new + n)))"; n=$((n + 1)); done >/tmp/pairs
    now; at2=$now
    dmsetup message $target 0 reserve_metadata_snap
    while read -r n from to; do thin_delta -m --thin1 $from --thin2 $to $meta >"/tmp/delta.$n"; done </tmp/pairs
    dmsetup message $target 0 release_metadata_snap
    now; at3=$now
    copies=0
    while read -r n from to; do
      grep -q '<different\|<right_only' "/tmp/delta.$n" || continue
      open_snap $n $((new + n))
      sed -n 's/.*<\(different\|right_only\) begin="\([0-9]*\)" length="\([0-9]*\)".*/\2 \3/p' "/tmp/delta.$n" >/tmp/ranges
      while read -r from length; do
        dd if=$copied of="/tmp/copy.$n" bs=64k skip=$from seek=$from count=$length iflag=direct conv=notrunc status=none
      done </tmp/ranges
      close_snap $n $((new + n))
      copies=$((copies + 1))
    done </tmp/pairs
    now; at4=$now
    n=0; while [ $n -lt $volumes ]; do unsnap $n $((old + n)); n=$((n + 1)); done
    now; at5=$now
    echo "tools $((at5 - at0 - at2 + at1)) $((at1 - at0)) $((at3 - at2)) $((at4 - at3)) $((at5 - at4)) $copies"
  fi
  round=$((round + 1))
done
echo "done yes"
"#;

/// On a pool of the kernel as it is, or of LVM. Lines `first CS`; for each round `ours WALL_CS SNAPSHOTS RESERVATIONS UNCHANGED
/// INCREMENTAL`, then `held US`, `reserve US` and `release US` for each metadata snapshot; for a round with the tools
/// `tools WALL_CS SNAPSHOTS_CS HELD_CS COPY_CS DELETE_CS COPIED`.
pub(crate) fn run(is_lvms: bool, amount: &Amount) -> Result<Option<Report>> {
    let Amount { volumes, changed, rounds, by_tools } = amount;
    let amount = format!("volumes={volumes} changed={changed} rounds={rounds} by_tools={by_tools}\n");
    in_guest(&format!("{PROGRAMS}{amount}{}{RUN}", if is_lvms { LVM } else { DM }))
}

/// The words after a key, of each of its lines, as numbers.
pub(crate) fn numbers(report: &Report, key: &str) -> Vec<Vec<u64>> {
    let lines = report.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    lines.map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect()).collect()
}

#[cfg(test)]
mod tests {
    use anyhow::ensure;

    use super::*;

    #[test]
    fn of_many_volumes_those_that_changed_are_snapshotted_and_two_metadata_snapshots_suffice() -> Result<()> {
        let amount = Amount { volumes: 12, changed: 3, rounds: 2, by_tools: 0 };
        let Some(report) = run(false, &amount)? else { return Ok(()) };
        let ours = numbers(&report, "ours");
        ensure!(ours.len() == 2, "{report:?}");
        for round in &ours {
            let [_, snapshots, reservations, unchanged, incremental] = round[..] else {
                anyhow::bail!("{report:?}")
            };
            ensure!(reservations == 2, "{reservations} metadata snapshots were reserved: {report:?}");
            ensure!([snapshots, incremental, unchanged] == [3, 3, 9], "{report:?}");
        }
        ensure!(numbers(&report, "held").len() == 4, "{report:?}");
        ensure!(report.get("done")? == "yes");
        Ok(())
    }

    #[test]
    fn two_metadata_snapshots_suffice_for_many_volumes_of_lvm() -> Result<()> {
        let amount = Amount { volumes: 5, changed: 3, rounds: 1, by_tools: 0 };
        let Some(report) = run(true, &amount)? else { return Ok(()) };
        let ours = numbers(&report, "ours");
        ensure!(ours.len() == 1, "{report:?}");
        for round in &ours {
            ensure!(round.get(2..) == Some(&[2, 2, 3]), "{report:?}");
        }
        ensure!(report.get("done")? == "yes");
        Ok(())
    }
}
