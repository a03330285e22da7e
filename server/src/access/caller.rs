//! Whoever made a call that was let in.

use std::{sync::Arc, time::Duration};

use thinbak_proto::{Failed, FailureKind, v1};
use uuid::Uuid;

use super::tokens::Known;
use crate::repository::{Repository, check_volume_name};

/// Expiry is looked at by the clock of the repository at least this often.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Whose call it is.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    /// Nobody had to show a token: an admin.
    Trusted,
    /// The holder of a token.
    Holder(Arc<Known>),
}

impl Caller {
    /// The token's name.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Trusted => "",
            Self::Holder(known) => &known.info.name,
        }
    }

    pub(crate) fn is_admin(&self) -> bool {
        match self {
            Self::Trusted => true,
            Self::Holder(known) => known.scope == v1::Scope::Admin,
        }
    }

    /// Whether it may know of a volume of this name.
    pub(crate) fn covers(&self, volume: &str) -> bool {
        match self {
            Self::Holder(known) if !self.is_admin() => known.covers(volume),
            _ => true,
        }
    }

    /// Whether it may add what a backup begins with. A volume that has another name now is not taken from whom that
    /// name belongs to, and a name is taken from another volume by an admin only.
    pub(crate) async fn check_begin(
        &self,
        repository: &Repository,
        begin: &v1::BackupBegin,
    ) -> Result<(), Failed> {
        if self.is_admin() {
            return Ok(());
        }
        let name = &begin.volume_name;
        check_volume_name(name)?;
        // What is no uuid is refused by the session.
        let volume = Uuid::parse_str(&begin.volume_uuid).unwrap_or_default();
        let denied = |why: &str| {
            Failed::new(
                FailureKind::Denied,
                format!("token {} may not add to volume {name}: {why}", self.name()),
            )
            .with_hint("`thinbak-server token list` on the server shows what it is for")
        };
        if !self.covers(name) {
            return Err(denied("it is not for such volumes"));
        }
        if begin.adopt {
            return Err(denied("only an admin lets another volume adopt a name"));
        }
        match repository.catalogue.name_of(volume).await? {
            Some(known) if !self.covers(&known) => Err(denied("it is not for this volume")),
            _ => Ok(()),
        }
    }

    /// Resolves when it may do no more: the token was revoked, or has expired.
    pub(crate) async fn ended(self, repository: Arc<Repository>) -> Failed {
        let Self::Holder(known) = self else { return std::future::pending().await };
        let mut revoked = known.revoked();
        loop {
            let now_ms = repository.now_ms();
            if let Some(failed) = known.ended(now_ms) {
                return failed;
            }
            let left = match known.info.expires_at_ms {
                0 => LOOK_EVERY,
                at => Duration::from_millis(at.saturating_sub(now_ms)).min(LOOK_EVERY),
            };
            // It is asked again at the head of the loop.
            let _ = tokio::time::timeout(left, revoked.wait_for(|revoked| *revoked)).await.is_ok();
        }
    }
}
