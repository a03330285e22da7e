//! Where each call is let in, or not.

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use thinbak_proto::{Failed, FailureKind, remote::Token, v1::AuditEntry};
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Request, Response, Status, codegen::http::header::AUTHORIZATION};

use super::{
    Caller,
    rules::{Rule, name_of, rule_of},
    watched::watched,
};
use crate::{repository::Repository, tls::Peer};

/// The way by which calls come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// In this process.
    Process,
    /// In the clear on the loopback: open until the first token is made.
    Loopback,
    /// Over TLS: never open.
    Network,
}

/// Lets in who may come in.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    pub(super) repository: Arc<Repository>,
    door: Door,
}

/// A call that was let in.
#[derive(Debug, Clone)]
pub(super) struct Admission {
    pub(super) caller: Caller,
    rule: &'static Rule,
    /// The address of the other end.
    peer: String,
    place: Option<Arc<OwnedSemaphorePermit>>,
    noted: bool,
}

/// Characters of a volume or an outcome that are written down.
const MAX_LINE: usize = 1024;

pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Gate {
    pub(crate) fn new(repository: Arc<Repository>, door: Door) -> Self {
        Self { repository, door }
    }

    /// Lets a call in, or says why not.
    pub(super) async fn admit<T>(
        &self,
        call: &'static str,
        request: &Request<T>,
    ) -> Result<Admission, Failed> {
        let denied = |why: String| Failed::new(FailureKind::Denied, why);
        let rule = rule_of(call).ok_or_else(|| denied(format!("{call} is not allowed to anybody")))?;
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0.to_string()).unwrap_or_default();
        // What an embedded repository does is its owner's; who may come in is written down wherever it is changed.
        let noted = rule.audited && (self.door != Door::Process || call.starts_with("Access/"));
        let mut admission = Admission { caller: Caller::Trusted, rule, peer, place: None, noted };
        if self.door == Door::Process {
            return Ok(admission);
        }
        let shown = request.metadata().as_ref().get(AUTHORIZATION);
        let Some(shown) = shown else {
            if self.door == Door::Loopback && !self.repository.tokens.any() {
                return Ok(admission);
            }
            return Err(denied("the server asks for a token, and none was shown".to_owned()).with_hint(
                "name its file with --token-file, THINBAK_TOKEN_FILE or `token_file` in agent.toml",
            ));
        };
        let token = shown.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).map(Token::parse);
        let known = token.and_then(Result::ok).and_then(|token| self.repository.tokens.find(&token));
        let known = known.ok_or_else(|| {
            tracing::warn!(peer = admission.peer, call, "a token was shown that is none of this server");
            denied("the token is none of this server".to_owned())
        })?;
        admission.caller = Caller::Holder(Arc::clone(&known));
        if !known.count() {
            let message = format!("token {} makes too many calls", known.info.name);
            return Err(Failed::new(FailureKind::Busy, message).with_hint("try again in a while"));
        }
        if let Some(failed) = known.ended(self.repository.now_ms()) {
            return Err(self.refused(admission, failed).await);
        }
        if !admission.caller.is_admin() && !rule.scopes.contains(&known.scope) {
            let (name, scope) = (&known.info.name, name_of(known.scope));
            let failed = denied(format!("token {name} is for {scope}, which does not include {call}"))
                .with_hint("an admin of the server makes another one: `thinbak-server token create`");
            return Err(self.refused(admission, failed).await);
        }
        let place = Arc::clone(&known.calls).try_acquire_owned().map_err(|_| {
            let message = format!("token {} has too many calls under way", known.info.name);
            Failed::new(FailureKind::Busy, message).with_hint("try again when one of them has ended")
        })?;
        admission.place = Some(Arc::new(place));
        Ok(admission)
    }

    async fn refused(&self, admission: Admission, failed: Failed) -> Failed {
        self.note_once(&Admission { noted: true, ..admission }, &failed.message).await;
        failed
    }

    /// Writes down why a call failed, but not again and again: nobody fills the log.
    pub(super) async fn note_once(&self, admission: &Admission, why: &str) {
        let is_told = match &admission.caller {
            Caller::Holder(known) => known.is_told(why),
            Caller::Trusted => true,
        };
        if is_told {
            self.note(admission, "", why).await;
        }
    }

    /// Writes down what was done, where that is to be written down. It is on stable storage then. A log that cannot be
    /// written, as on a full disk, stops nobody: restores go on, and room must be made. The health tells of it.
    pub(super) async fn note(&self, admission: &Admission, volume: &str, outcome: &str) {
        if !admission.noted {
            return;
        }
        let entry = AuditEntry {
            number: 0,
            at_ms: self.repository.now_ms(),
            token: admission.caller.name().to_owned(),
            peer: admission.peer.clone(),
            call: admission.rule.call.to_owned(),
            volume: line(volume),
            outcome: line(outcome),
        };
        if let Err(error) = self.repository.catalogue.note(&entry).await {
            tracing::error!(%error, ?entry, "the audit log cannot be written");
        }
    }

    /// Writes down what came of a call, which is then answered so.
    pub(super) async fn finished<T>(
        &self,
        admission: &Admission,
        volume: &str,
        answer: Result<Response<T>, Status>,
    ) -> Result<Response<T>, Status> {
        let outcome = match &answer {
            Ok(_) => "done",
            Err(status) => status.message(),
        };
        self.note(admission, volume, outcome).await;
        answer
    }

    /// The answers, until they end or the caller may have no more of them.
    pub(super) fn watched<T: Send + 'static>(
        &self,
        admission: Admission,
        answer: Response<Answers<T>>,
    ) -> Response<Answers<T>> {
        if matches!(admission.caller, Caller::Trusted) {
            return answer;
        }
        let ended = admission.caller.ended(Arc::clone(&self.repository));
        answer.map(|answers| watched(answers, admission.place, ended))
    }
}

/// One line of the log, whatever somebody wrote.
fn line(text: &str) -> String {
    let mut line = String::new();
    for letter in text.chars().take(MAX_LINE) {
        if letter.is_control() { line.extend(letter.escape_default()) } else { line.push(letter) }
    }
    line
}
