use super::*;

fn parsed(text: &str) -> (String, String, Option<String>) {
    let arg: VolumeArg = text.parse().unwrap();
    (arg.pool, arg.volume, arg.snapshot)
}

#[test]
fn the_last_slash_splits_pool_and_volume() {
    assert_eq!(parsed("p/v"), ("p".into(), "v".into(), None));
    assert_eq!(parsed("p/v@s"), ("p".into(), "v".into(), Some("s".into())));
    assert_eq!(parsed("dir:/a/b/v@s"), ("dir:/a/b".into(), "v".into(), Some("s".into())));
    assert_eq!(parsed("lvm:vg/pool/v"), ("lvm:vg/pool".into(), "v".into(), None));
}

#[test]
fn a_relative_directory_becomes_absolute() {
    let here = std::env::current_dir().unwrap();
    assert_eq!(parsed("dir:a/v").0, format!("dir:{}/a", here.display()));
    assert_eq!(pool("dir:a").unwrap(), format!("dir:{}/a", here.display()));
    assert_eq!(pool("a").unwrap(), "a");
}

#[test]
fn what_is_no_volume_is_refused() {
    for text in ["", "v", "/v", "p/", "p/.v", "p/-v", "p/a:b", "p/v@", "p/@s", "p/v@s@t"] {
        assert!(text.parse::<VolumeArg>().is_err(), "{text}");
    }
    assert!(volume("p/v@s").is_err());
    assert!(snapshot("p/v").is_err());
    assert!(pool("").is_err());
}

fn generation(text: &str) -> Result<(String, Which), String> {
    text.parse::<GenerationArg>().map(|arg| (arg.volume, arg.which))
}

#[test]
fn the_generation_follows_the_first_colon_after_the_last_slash() {
    assert_eq!(generation("h/p/v:3").unwrap(), ("h/p/v".into(), Which::Number(3)));
    assert_eq!(generation("p/v:latest").unwrap(), ("p/v".into(), Which::Latest(true)));
    assert_eq!(generation("h:1/p/v:2").unwrap(), ("h:1/p/v".into(), Which::Number(2)));
    let (volume, _) = generation("h/p/v:2026-11-23T16:00").unwrap();
    assert_eq!(volume, "h/p/v");
    for text in ["h/p/v", "h/p/v:", "h/p/:1", ":1", "h/p/v:0", "h/p/v:x", "v:99999999999999999999"] {
        assert!(generation(text).is_err(), "{text}");
    }
    assert_eq!("p/v".parse::<VolumeOrGeneration>().unwrap().which, None);
    assert_eq!("p/v:7".parse::<VolumeOrGeneration>().unwrap().which, Some(Which::Number(7)));
}

#[test]
fn times_are_local_unless_they_say_otherwise() {
    let berlin = TimeZone::fixed(jiff::tz::offset(1));
    let noon_utc = 1_795_435_200_000; // 2026-11-23T12:00:00Z
    assert_eq!(time("2026-11-23T12:00:00Z", &berlin), Some(noon_utc));
    assert_eq!(time("2026-11-23T14:00:00+02:00", &berlin), Some(noon_utc));
    assert_eq!(time("2026-11-23T13:00", &berlin), Some(noon_utc));
    assert_eq!(time("2026-11-23 13:00:00", &berlin), Some(noon_utc));
    assert_eq!(time("2026-11-23", &berlin), Some(noon_utc - 13 * 3_600_000));
    assert_eq!(time("1960-01-01", &berlin), None);
    assert_eq!(time("yesterday", &berlin), None);
}

#[test]
fn sizes_are_powers_of_1024() {
    for (text, bytes) in [
        ("512", 512),
        ("64K", 64 << 10),
        ("64k", 64 << 10),
        ("10G", 10 << 30),
        ("1T", 1 << 40),
        ("1MiB", 1 << 20),
        ("7B", 7),
    ] {
        assert_eq!(size(text), Ok(bytes), "{text}");
    }
    for text in ["", "0", "K", "1X", "-1", "1.5G", "1 G", "20000000000000000000", "16384P"] {
        assert!(size(text).is_err(), "{text}");
    }
}

#[test]
fn a_share_is_above_nothing_and_at_most_all() {
    assert_eq!(share("5%"), Ok(0.05));
    assert_eq!(share("0.5"), Ok(0.5));
    assert_eq!(share("100%"), Ok(1.0));
    for text in ["0%", "101%", "-1%", "x", "NaN", "2"] {
        assert!(share(text).is_err(), "{text}");
    }
}

#[test]
fn a_path_has_a_slash_and_a_pool_has_none() {
    assert_eq!("p".parse::<MetadataArg>(), Ok(MetadataArg::Pool("p".into())));
    assert_eq!("dir:/a".parse::<MetadataArg>(), Ok(MetadataArg::Pool("dir:/a".into())));
    assert_eq!("/a/b".parse::<MetadataArg>(), Ok(MetadataArg::Path("/a/b".into())));
    let here = std::env::current_dir().unwrap();
    assert_eq!("./m".parse::<MetadataArg>(), Ok(MetadataArg::Path(format!("{}/m", here.display()))));
}

#[test]
fn a_host_is_one_part_of_a_name() {
    assert_eq!(host("web-1.example.org"), Ok("web-1.example.org".to_owned()));
    for text in ["", "a/b", "a:b", "..", "-x", "a@b"] {
        assert!(host(text).is_err(), "{text}");
    }
}

#[test]
fn several_generations_are_named_by_a_range_or_all_of_them() {
    let parse = |text: &str| text.parse::<GenerationsArg>();
    let range = |volume: &str, first, last| {
        Ok(GenerationsArg { volume: volume.to_owned(), which: Generations::Range(first, last) })
    };
    assert_eq!(parse("h/p/v:3..7"), range("h/p/v", 3, 7));
    assert_eq!(parse("v:3..3"), range("v", 3, 3));
    assert_eq!(parse("v:3.."), range("v", 3, u64::MAX));
    assert_eq!(parse("v:..7"), range("v", 1, 7));
    assert_eq!(parse("v..w:all"), range("v..w", 1, u64::MAX));
    let one = GenerationsArg { volume: "p/v".to_owned(), which: Generations::One(Which::Latest(true)) };
    assert_eq!(parse("p/v:latest"), Ok(one));
    for wrong in [
        "v",
        "v:",
        "v:..",
        "v:7..3",
        "v:0..3",
        "v:a..b",
        "v:1..2..3",
        "v:1..latest",
        "v:ALL",
        ":all",
        "v:-1..",
    ] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}
