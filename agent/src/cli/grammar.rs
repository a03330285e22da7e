//! How pools, volumes, snapshots, generations, sizes and times are written on the command line.

use std::{path::Path, str::FromStr};

use jiff::{Timestamp, civil, tz::TimeZone};
use thinbak_engine::embedded::check_volume_name;
use thinbak_proto::v1::{GenerationSelector, generation_selector::Which};

pub(super) use crate::config::parse_size as size;

/// `POOL/VOLUME` or `POOL/VOLUME@SNAP`; the last `/` splits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VolumeArg {
    pub(super) pool: String,
    pub(super) volume: String,
    pub(super) snapshot: Option<String>,
}

impl FromStr for VolumeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((pool, name)) = text.rsplit_once('/').filter(|(pool, _)| !pool.is_empty()) else {
            return Err("a volume is named as POOL/VOLUME".to_owned());
        };
        let (volume, snapshot) = match name.split_once('@') {
            Some((volume, snapshot)) => (volume, Some(snapshot)),
            None => (name, None),
        };
        for name in [Some(volume), snapshot].into_iter().flatten() {
            check_volume_name(name).map_err(|error| format!("`{name}` is no name: {error}"))?;
        }
        Ok(Self {
            pool: absolute_pool(pool)?,
            volume: volume.to_owned(),
            snapshot: snapshot.map(ToOwned::to_owned),
        })
    }
}

/// A volume and no snapshot.
pub(super) fn volume(text: &str) -> Result<VolumeArg, String> {
    let arg: VolumeArg = text.parse()?;
    match arg.snapshot {
        None => Ok(arg),
        Some(_) => Err("a volume is wanted here, not a snapshot".to_owned()),
    }
}

/// A snapshot.
pub(super) fn snapshot(text: &str) -> Result<VolumeArg, String> {
    let arg: VolumeArg = text.parse()?;
    match arg.snapshot {
        Some(_) => Ok(arg),
        None => Err("a snapshot is named as POOL/VOLUME@SNAP".to_owned()),
    }
}

/// A pool: a name, or `dir:PATH`, whose path becomes absolute here, where the current directory is known.
pub(super) fn pool(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("the name is empty".to_owned());
    }
    absolute_pool(text)
}

/// The first part of a volume's name on a server: it keeps the rules of volume names.
pub(super) fn host(text: &str) -> Result<String, String> {
    check_volume_name(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

fn absolute_pool(text: &str) -> Result<String, String> {
    let Some(path) = text.strip_prefix("dir:") else { return Ok(text.to_owned()) };
    let absolute = std::path::absolute(Path::new(path)).map_err(|error| format!("{path}: {error}"))?;
    absolute.to_str().map(|path| format!("dir:{path}")).ok_or_else(|| format!("{path} is not valid UTF-8"))
}

/// `POOL` or the path of metadata, for dump and delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MetadataArg {
    /// A pool as [`pool`] returns it.
    Pool(String),
    /// An absolute path.
    Path(String),
}

impl FromStr for MetadataArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_kind = text
            .split_once(':')
            .is_some_and(|(kind, _)| !kind.is_empty() && kind.chars().all(|c| c.is_ascii_lowercase()));
        if is_kind || !text.contains('/') {
            return pool(text).map(Self::Pool);
        }
        absolute_path(text).map(Self::Path)
    }
}

/// A path as another process understands it.
pub(super) fn absolute_path(text: &str) -> Result<String, String> {
    let absolute = std::path::absolute(text).map_err(|error| error.to_string())?;
    absolute.to_str().map(ToOwned::to_owned).ok_or_else(|| "the path is not valid UTF-8".to_owned())
}

/// `VOLUME:GEN` with GEN a number, `latest` or a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GenerationArg {
    pub(super) volume: String,
    pub(super) which: Which,
}

impl GenerationArg {
    pub(super) fn selector(&self) -> GenerationSelector {
        GenerationSelector { which: Some(self.which) }
    }
}

impl FromStr for GenerationArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (volume, generation) = split_generation(text)?;
        let generation =
            generation.ok_or("a generation is named as VOLUME:GEN, with a number, `latest` or a time")?;
        Ok(Self { volume: volume.to_owned(), which: which(generation, &TimeZone::system())? })
    }
}

/// `VOLUME:GEN` where GEN may also stand for several: `3..7`, `3..`, `..7`, `all`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GenerationsArg {
    pub(super) volume: String,
    pub(super) which: Generations,
}

/// One generation, or all with numbers in a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Generations {
    /// One.
    One(Which),
    /// Those with these numbers that are there, both ends included.
    Range(u64, u64),
}

impl FromStr for GenerationsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (volume, generation) = split_generation(text)?;
        let generation = generation
            .ok_or("generations are named as VOLUME:GEN, with a number, `latest`, a time, 3..7 or `all`")?;
        let which = match (generation, generation.split_once("..")) {
            ("all", _) => Generations::Range(1, u64::MAX),
            (_, None) => Generations::One(which(generation, &TimeZone::system())?),
            (_, Some((first, last))) => range(first, last)?,
        };
        Ok(Self { volume: volume.to_owned(), which })
    }
}

/// `FIRST..LAST`, either of which may be left out.
fn range(first: &str, last: &str) -> Result<Generations, String> {
    let number = |text: &str, absent: u64| match text {
        "" => Ok(absent),
        text => text
            .parse()
            .ok()
            .filter(|&number: &u64| number > 0)
            .ok_or_else(|| format!("`{text}` is no number of a generation: they count from 1")),
    };
    match (first, last) {
        ("", "") => Err("a range without numbers: like 3..7, 3.. or ..7; `all` means all".to_owned()),
        (first, last) => match (number(first, 1)?, number(last, u64::MAX)?) {
            (first, last) if first <= last => Ok(Generations::Range(first, last)),
            (first, last) => Err(format!("{first}..{last} is empty: the lower number comes first")),
        },
    }
}

/// `VOLUME` or `VOLUME:GEN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VolumeOrGeneration {
    pub(super) volume: String,
    pub(super) which: Option<Which>,
}

impl FromStr for VolumeOrGeneration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (volume, generation) = split_generation(text)?;
        let which = generation.map(|generation| which(generation, &TimeZone::system())).transpose()?;
        Ok(Self { volume: volume.to_owned(), which })
    }
}

/// GEN is all after the first `:` that follows the last `/`.
fn split_generation(text: &str) -> Result<(&str, Option<&str>), String> {
    let name = text.rfind('/').map_or(0, |slash| slash + 1);
    let colon = text.get(name..).and_then(|rest| rest.find(':')).map(|colon| name + colon);
    let (volume, generation) = match colon.and_then(|colon| text.split_at_checked(colon)) {
        Some((volume, generation)) => (volume, generation.strip_prefix(':')),
        None => (text, None),
    };
    if volume.is_empty() || volume.ends_with('/') {
        return Err("the volume's name is missing".to_owned());
    }
    Ok((volume, generation))
}

fn which(text: &str, zone: &TimeZone) -> Result<Which, String> {
    if text == "latest" {
        return Ok(Which::Latest(true));
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return match text.parse() {
            Ok(0) | Err(_) => Err(format!("`{text}` is no number of a generation: they count from 1")),
            Ok(number) => Ok(Which::Number(number)),
        };
    }
    time(text, zone).map(Which::AtOrBeforeMs).ok_or_else(|| {
        format!("`{text}` is no generation: a number, `latest` or a time like 2026-11-23T16:00")
    })
}

/// Milliseconds since 1970 of a time with or without offset; without, it is local. A date alone is its first
/// moment.
fn time(text: &str, zone: &TimeZone) -> Option<u64> {
    let timestamp = match text.parse::<Timestamp>() {
        Ok(timestamp) => timestamp,
        Err(_) => text.parse::<civil::DateTime>().ok()?.to_zoned_datetime(zone.clone()).ok()?.timestamp(),
    };
    u64::try_from(timestamp.as_millisecond()).ok()
}

/// [`size`], or nothing.
pub(super) fn size_or_zero(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { size(text) }
}

/// A number from 1 on, or `all`, which is 0.
pub(super) fn count_or_all(text: &str) -> Result<u32, String> {
    match text.parse() {
        _ if text == "all" => Ok(0),
        Ok(0) | Err(_) => Err("a number from 1 on, or `all`".to_owned()),
        Ok(count) => Ok(count),
    }
}

/// `5%` or `0.05`: a share above 0, at most all.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let (number, scale) = match text.strip_suffix('%') {
        Some(percent) => (percent, 100.0),
        None => (text, 1.0),
    };
    match number.trim().parse::<f64>() {
        Ok(share) if share > 0.0 && share / scale <= 1.0 => Ok(share / scale),
        _ => Err(format!("`{text}` is no share: like 5%, above 0% and at most 100%")),
    }
}

/// A duration like `90m`, `12h`, `30d` or `4w`, in milliseconds; at least one.
pub(super) fn age(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no duration like 90m, 12h, 30d or 4w");
    let (digits, seconds) = [('s', 1u64), ('m', 60), ('h', 3600), ('d', 86_400), ('w', 604_800)]
        .into_iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))
        .ok_or_else(wrong)?;
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let milliseconds = number.checked_mul(seconds).and_then(|seconds| seconds.checked_mul(1000));
    milliseconds.map(|milliseconds| milliseconds.max(1)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests;
