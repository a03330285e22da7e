use clap::{CommandFactory as _, Parser as _};

use super::{args::Cli, *};

fn parses(line: &str) -> bool {
    Cli::try_parse_from(line.split(' ')).is_ok()
}

#[test]
fn the_grammar_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_documented_commands_parse() {
    for line in [
        "thinbak demo",
        "thinbak pool create p --size 10G --block-size 64K --metadata-size 64M --dir /x",
        "thinbak pool create p --data /dev/a --metadata /dev/b",
        "thinbak pool create p --size 1G --zero n --discards ignore --errorwhenfull n --low-water 1M",
        "thinbak pool set p --permission r --no-space-timeout 0 --low-water 0",
        "thinbak pool resize p --size 2G --metadata-size 8M",
        "thinbak pool resize p --metadata-size 8M",
        "thinbak pool message p reserve_metadata_snap",
        "thinbak pool message p create_snap 7 -1",
        "thinbak volume create p/v --size 1G --external-origin /x",
        "thinbak volume create p/v --size 1G",
        "thinbak volume snapshot p/v@a p/w@a",
        "thinbak volume remove p/v@a",
        "thinbak volume import p/v",
        "thinbak volume export p/v@a",
        "thinbak msnap release p --force",
        "thinbak dump --metadata-snap --dev-id 3 p",
        "thinbak delta --metadata-snap --from 1 --to v@b --json ./meta",
        "thinbak backup p/v p/w --group --repo /r",
        "thinbak generation list --repo /r",
        "thinbak generation diff v:1 v:latest --server http://h:1",
        "thinbak generation protect h/p/v:3 --off",
        "thinbak restore v:2026-11-23T16:00 --to p/w",
        "thinbak restore v:1 --to-file f",
        "thinbak restore v:1 --in-place",
        "thinbak restore v:1 --in-place=p/v",
        "thinbak verify",
        "thinbak verify h/p/v:3 --sample 5%",
        "thinbak agent run --socket /s",
        "thinbak agent status",
        "thinbak agent reload",
        "thinbak status --json",
        "thinbak job list",
        "thinbak job run nightly --repo /r",
        "thinbak backup p/v --bandwidth 20M --read-rate 1G",
        "thinbak completions bash",
        "thinbak man /x",
    ] {
        assert!(parses(line), "{line}");
    }
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    for line in [
        "thinbak pool create p",
        "thinbak pool create p --data /dev/a",
        "thinbak pool create p --size 1G --permission r",
        "thinbak pool create p --size 1G --zero maybe",
        "thinbak pool set p",
        "thinbak pool set p --discards sometimes",
        "thinbak pool resize p",
        "thinbak volume create p/v@s --size 1G",
        "thinbak volume snapshot p/v",
        "thinbak backup",
        "thinbak backup p/v --bandwidth 0",
        "thinbak job run",
        "thinbak agent stop",
        "thinbak restore v:1",
        "thinbak restore v --to p/w",
        "thinbak restore v:1 --to p/w --to-file f",
        "thinbak generation list --repo /r --server http://s",
        "thinbak verify --sample 0%",
    ] {
        let error = Cli::try_parse_from(line.split(' ')).err().map(|error| error.exit_code());
        assert_eq!(error, Some(2), "{line}");
    }
}

#[test]
fn exit_codes_follow_the_failure() {
    let not_found = Stop::from(Failed::new(FailureKind::NotFound, "x"));
    assert_eq!(not_found.exit_code(), 10);
    let closed = Stop::from(io::Error::from(io::ErrorKind::BrokenPipe));
    assert_eq!(closed.exit_code(), 0);
}
