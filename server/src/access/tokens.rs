//! The tokens of a repository: in the catalogue, and in memory for the calls.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use parking_lot::{Mutex, RwLock};
use subtle::ConstantTimeEq as _;
use thinbak_proto::{
    Failed, FailureKind, Pattern,
    remote::{ID_DIGITS, Token},
    v1::{CreateTokenRequest, Scope, TokenInfo},
};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use crate::{catalogue::Catalogue, repository::Repository};

/// Calls of one token at a time, streams included.
const MAX_CALLS: usize = 64;
/// Calls of one token in a second, over a while, and at once.
const CALLS_PER_SECOND: f64 = 500.0;
const BURST: f64 = 2000.0;
const REFUSAL_EVERY: Duration = Duration::from_secs(60);
const MAX_NAME_LEN: usize = 128;
const MAX_PATTERNS: usize = 256;
/// Of tokens that a repository has, revoked ones included.
const MAX_TOKENS: usize = 10_000;

/// What is kept of the secret part of a token. It has 256 random bits: no slow hash is needed.
pub(crate) type SecretHash = [u8; 32];

/// A token that was made.
pub(crate) struct Known {
    pub(crate) info: TokenInfo,
    pub(crate) scope: Scope,
    patterns: Vec<Pattern>,
    hash: SecretHash,
    revoked: watch::Sender<bool>,
    pub(crate) calls: Arc<Semaphore>,
    rate: Mutex<Rate>,
    /// When which refusal was written down last.
    refusals: Mutex<HashMap<String, Instant>>,
}

/// A bucket that fills by the second.
struct Rate {
    left: f64,
    at: Instant,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Known {
    /// `None`: the row is none that this version understands.
    fn new(info: TokenInfo, hash: SecretHash) -> Option<Self> {
        let patterns =
            info.volumes.iter().map(|pattern| Pattern::new(pattern)).collect::<Result<_, _>>().ok()?;
        Some(Self {
            scope: info.scope(),
            patterns,
            hash,
            revoked: watch::Sender::new(info.revoked_at_ms != 0),
            calls: Arc::new(Semaphore::new(MAX_CALLS)),
            rate: Mutex::new(Rate { left: BURST, at: Instant::now() }),
            refusals: Mutex::default(),
            info,
        })
    }

    /// Whether it covers a volume of this name.
    pub(crate) fn covers(&self, volume: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(volume))
    }

    /// Turns to `true` when it is revoked.
    pub(crate) fn revoked(&self) -> watch::Receiver<bool> {
        self.revoked.subscribe()
    }

    /// Counts a call; `false`: it is one too many.
    pub(crate) fn count(&self) -> bool {
        let (mut rate, now) = (self.rate.lock(), Instant::now());
        let filled = rate.left + now.duration_since(rate.at).as_secs_f64() * CALLS_PER_SECOND;
        rate.at = now;
        rate.left = filled.min(BURST) - 1.0;
        if rate.left < 0.0 {
            rate.left = 0.0;
            return false;
        }
        true
    }

    /// Whether a refusal is to be written down: the same one once in a while, so that nobody fills the log.
    pub(crate) fn is_told(&self, refusal: &str) -> bool {
        let (mut refusals, now) = (self.refusals.lock(), Instant::now());
        refusals.retain(|_, at| now.duration_since(*at) < REFUSAL_EVERY);
        match refusals.entry(refusal.to_owned()) {
            Entry::Occupied(_) => false,
            Entry::Vacant(free) => {
                free.insert(now);
                true
            }
        }
    }

    /// Why it is no good any more, if it is not.
    pub(crate) fn ended(&self, now_ms: u64) -> Option<Failed> {
        let name = &self.info.name;
        let ended = |how: &str| {
            Failed::new(FailureKind::Denied, format!("token {name} {how}"))
                .with_hint("an admin of the server makes another one: `thinbak-server token create`")
        };
        if *self.revoked.borrow() {
            return Some(ended("was revoked"));
        }
        let expires = self.info.expires_at_ms;
        (expires != 0 && expires <= now_ms).then(|| ended("has expired"))
    }
}

/// An empty file beside the catalogue: a token was made once. A catalogue that was made anew has none, and must open no door.
#[derive(Debug, Default)]
struct Mark {
    path: PathBuf,
    is_set: AtomicBool,
}

impl Mark {
    fn of(dir: &Path) -> Self {
        let path = dir.join("tokens-required");
        let is_set = AtomicBool::new(path.exists());
        Self { path, is_set }
    }

    fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Relaxed)
    }

    /// Durable when this returns.
    fn set(&self) -> io::Result<()> {
        if self.is_set() {
            return Ok(());
        }
        File::create(&self.path)?.sync_all()?;
        if let Some(dir) = self.path.parent() {
            File::open(dir)?.sync_all()?;
        }
        self.is_set.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// All tokens that were ever made for a repository.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    mark: Mark,
    by_id: RwLock<HashMap<String, Arc<Known>>>,
    /// Held while one is made or revoked.
    changing: tokio::sync::Mutex<()>,
}

impl Tokens {
    /// Those of a catalogue.
    pub(crate) async fn load(catalogue: &Catalogue, dir: &Path) -> Result<Self, crate::CatalogueError> {
        let rows = catalogue.tokens().await?;
        // One that is not understood opens nothing, and still counts as one that was made.
        let known = rows.into_iter().map(|(info, hash)| {
            let id = info.id.clone();
            let closed = TokenInfo { volumes: Vec::new(), scope: Scope::Unspecified.into(), ..info.clone() };
            Known::new(info, hash).or_else(|| Known::new(closed, hash)).map(|known| (id, Arc::new(known)))
        });
        let by_id: HashMap<_, _> = known.flatten().collect();
        let mark = Mark::of(dir);
        if !by_id.is_empty()
            && let Err(error) = mark.set()
        {
            tracing::warn!(%error, "it is not marked in the repository's directory that there are tokens");
        }
        Ok(Self { mark, by_id: RwLock::new(by_id), changing: tokio::sync::Mutex::default() })
    }

    /// Whether one was ever made, though the catalogue may not know of it any more.
    pub(crate) fn any(&self) -> bool {
        self.mark.is_set() || !self.by_id.read().is_empty()
    }

    /// The one that is shown, if its secret is right. Takes as long for one that is not known.
    pub(crate) fn find(&self, shown: &Token) -> Option<Arc<Known>> {
        let known = self.by_id.read().get(shown.id()).cloned();
        let expected = known.as_ref().map_or([0; 32], |known| known.hash);
        let same = bool::from(hash_of(shown).ct_eq(&expected));
        known.filter(|_| same)
    }

    /// By creation.
    pub(crate) fn list(&self) -> Vec<TokenInfo> {
        let mut all: Vec<TokenInfo> = self.by_id.read().values().map(|known| known.info.clone()).collect();
        all.sort_by(|a, b| (a.created_at_ms, &a.name).cmp(&(b.created_at_ms, &b.name)));
        all
    }

    /// Makes one.
    pub(crate) async fn create(
        &self,
        repository: &Repository,
        request: CreateTokenRequest,
    ) -> Result<(TokenInfo, Token), Failed> {
        let _alone = self.changing.lock().await;
        let now_ms = repository.now_ms();
        check(&request)?;
        if self.by_id.read().len() >= MAX_TOKENS {
            return Err(Failed::new(FailureKind::Refused, format!("there are {MAX_TOKENS} tokens already")));
        }
        if self.by_id.read().values().any(|known| known.info.name == request.name) {
            let message = format!("cannot make token {}: there is or was one of this name", request.name);
            return Err(Failed::new(FailureKind::Refused, message).with_hint("choose another name"));
        }
        let token = Token::draw();
        let info = TokenInfo {
            id: token.id().to_owned(),
            scope: request.scope,
            name: request.name,
            volumes: request.volumes,
            created_at_ms: now_ms,
            expires_at_ms: match request.expires_in_ms {
                0 => 0,
                lasts => now_ms.saturating_add(lasts).min(i64::MAX.unsigned_abs()),
            },
            revoked_at_ms: 0,
        };
        let unusable = || Failed::new(FailureKind::Failed, "the system gave no randomness for a token");
        let token = Token::parse(token.text()).map_err(|_| unusable())?;
        let known = Known::new(info.clone(), hash_of(&token)).ok_or_else(unusable)?;
        self.mark.set().map_err(|error| {
            Failed::new(FailureKind::Failed, format!("mark that the repository has tokens: {error}"))
        })?;
        repository.catalogue.add_token(&info, &known.hash).await?;
        self.by_id.write().insert(info.id.clone(), Arc::new(known));
        Ok((info, token))
    }

    /// Revokes one, by its name or id: what runs with it ends. Durable before it is in force.
    pub(crate) async fn revoke(&self, repository: &Repository, named: &str) -> Result<TokenInfo, Failed> {
        let _alone = self.changing.lock().await;
        let found = {
            let by_id = self.by_id.read();
            by_id.values().find(|known| known.info.name == named).or_else(|| by_id.get(named)).cloned()
        };
        let known = found.ok_or_else(|| {
            Failed::new(FailureKind::NotFound, format!("there is no token {named}"))
                .with_hint("`thinbak-server token list` shows them")
        })?;
        if known.info.revoked_at_ms != 0 {
            return Ok(known.info.clone());
        }
        let info = TokenInfo { revoked_at_ms: repository.now_ms().max(1), ..known.info.clone() };
        repository.catalogue.revoke_token(&info.id, info.revoked_at_ms).await?;
        if let Some(revoked) = Known::new(info.clone(), known.hash) {
            self.by_id.write().insert(info.id.clone(), Arc::new(revoked));
        }
        known.revoked.send_replace(true);
        Ok(info)
    }
}

fn hash_of(token: &Token) -> SecretHash {
    let mut bytes = [0; 32];
    for (to, from) in bytes.iter_mut().zip(digest(&SHA256, token.secret().as_bytes()).as_ref()) {
        *to = *from;
    }
    bytes
}

/// What cannot be a token is refused before anything is made.
fn check(request: &CreateTokenRequest) -> Result<(), Failed> {
    let usage = |why: String| Err(Failed::new(FailureKind::Usage, format!("cannot make the token: {why}")));
    let CreateTokenRequest { name, volumes, .. } = request;
    if name.is_empty()
        || name.len() > MAX_NAME_LEN
        || name.chars().any(|c| c.is_control() || c.is_whitespace())
    {
        return usage(format!("a name has 1 to {MAX_NAME_LEN} bytes and no spaces"));
    }
    if name.len() == ID_DIGITS && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return usage("a name that looks like the id of a token is taken for one".to_owned());
    }
    if volumes.is_empty() || volumes.len() > MAX_PATTERNS {
        return usage(format!("1 to {MAX_PATTERNS} patterns of volumes are needed"));
    }
    for pattern in volumes {
        if pattern.chars().any(char::is_control) {
            return usage("a pattern has control characters".to_owned());
        }
        if let Err(error) = Pattern::new(pattern) {
            return usage(error.to_string());
        }
    }
    match request.scope() {
        Scope::Unspecified => usage("it has no scope".to_owned()),
        Scope::Admin if volumes.iter().any(|pattern| pattern != "*") => {
            usage("an admin may do everything to all volumes, which is the pattern *".to_owned())
        }
        _ => Ok(()),
    }
}
