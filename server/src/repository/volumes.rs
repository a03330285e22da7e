//! Names of volumes and generations: what is allowed, and what is meant.

use thinbak_proto::{Failed, FailureKind, METADATA_VOLUME, SHAPE_VOLUME, v1};
use uuid::Uuid;

use super::Repository;
use crate::catalogue::{Entry, Selector};

const MAX_NAME_LEN: usize = 512;

/// A name on the server is HOST/POOL/VOLUME. The last part follows the rules of volume names, which make
/// VOLUME:GEN unambiguous.
pub(crate) fn check_volume_name(name: &str) -> Result<(), Failed> {
    let refuse = |why: &str| {
        let name: String = name.chars().take(80).collect();
        Err(Failed::new(FailureKind::Usage, format!("{name:?} cannot be a volume's name: {why}")))
    };
    if name.len() > MAX_NAME_LEN {
        return refuse("it is longer than 512 bytes");
    }
    if name.chars().any(char::is_control) {
        return refuse("it has control characters");
    }
    let volume = name.rsplit('/').next().unwrap_or_default();
    if volume.is_empty() || name.starts_with('/') {
        return refuse("it begins or ends with nothing beside a '/'");
    }
    let is_dotted = volume.starts_with('.') && ![SHAPE_VOLUME, METADATA_VOLUME].contains(&volume);
    if is_dotted || volume.contains([':', '@']) || volume.starts_with('-') {
        return refuse("its last part has ':' or '@', or begins with '-' or '.'");
    }
    Ok(())
}

/// The selector of a request.
pub(crate) fn selector_of(selector: Option<v1::GenerationSelector>) -> Result<Selector, Failed> {
    use v1::generation_selector::Which;
    match selector.and_then(|selector| selector.which) {
        Some(Which::Number(number)) => Ok(Selector::Number(number)),
        Some(Which::Latest(true)) => Ok(Selector::Latest),
        Some(Which::AtOrBeforeMs(time)) => Ok(Selector::AtOrBefore(time)),
        Some(Which::Latest(false)) | None => {
            Err(Failed::new(FailureKind::Usage, "the request does not say which generation is meant"))
        }
    }
}

/// What is said of a volume that is not there.
pub(crate) fn unknown_volume(name: &str) -> Failed {
    Failed::new(FailureKind::NotFound, format!("volume {name} is not in the repository"))
        .with_hint("`thinbak generation list` shows what is there")
}

impl Repository {
    /// The volume of this name: as it stands, else as one of the host that asks.
    pub(crate) async fn volume(&self, name: Option<v1::VolumeName>) -> Result<Uuid, Failed> {
        let v1::VolumeName { name, host } = name.unwrap_or_default();
        check_volume_name(&name)?;
        if let Some(uuid) = self.catalogue.volume(&name).await? {
            return Ok(uuid);
        }
        let known = match host.as_str() {
            "" => None,
            host => self.catalogue.volume(&format!("{host}/{name}")).await?,
        };
        known.ok_or_else(|| unknown_volume(&name))
    }

    /// The one generation that is meant.
    pub(crate) async fn generation(
        &self,
        name: Option<v1::VolumeName>,
        selector: Option<v1::GenerationSelector>,
    ) -> Result<Entry, Failed> {
        let which = selector_of(selector)?;
        let shown = name.as_ref().map(|name| name.name.clone()).unwrap_or_default();
        let volume = self.volume(name).await?;
        self.catalogue.generation(volume, which).await?.ok_or_else(|| {
            let message = match which {
                Selector::Number(number) => format!("volume {shown} has no generation {number}"),
                Selector::Latest => format!("volume {shown} has no generation"),
                Selector::AtOrBefore(_) => format!("volume {shown} has no generation that old"),
            };
            Failed::new(FailureKind::NotFound, message)
                .with_hint(format!("`thinbak generation list {shown}` shows what is there"))
        })
    }
}
