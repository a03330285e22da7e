//! Applying policies: every generation is decided about, and what no rule keeps is deleted in steps. A run that
//! is broken off, wherever, is continued by the next.
//!
//! Volumes that one policy is applied to at one time keep their groups together: where a generation is kept, so
//! are those of the same moment. (Backups of one group are committed one after the other, and midnight may lie
//! between.) Between different policies there is no such bond.

use std::{collections::HashSet, sync::Arc, time::Instant};

use jiff::tz::TimeZone;
use thinbak_proto::{Failed, FailureKind, Pattern, is_hidden, v1};
use tokio::sync::mpsc;
use tonic::Status;
use uuid::Uuid;
use v1::prune_event::Event;

use super::{
    Kept, Policy,
    delete::{self, STEP},
    plan::{Decision, Reason, plan},
};
use crate::{
    catalogue::GenerationKey,
    metrics::Job,
    repository::{Repository, check_volume_name},
};

/// Events that wait for the client.
const EVENTS: usize = 64;

/// An event, or why there are no more.
pub(crate) type Told = Result<v1::PruneEvent, Status>;

/// Volumes that one policy is applied to.
#[derive(Debug, PartialEq, Eq)]
struct Scope {
    policy: Policy,
    /// Uuids and names, by name.
    volumes: Vec<(Uuid, String)>,
}

/// What is to be pruned, and by which clock and calendar.
pub(crate) struct Prune {
    scopes: Vec<Scope>,
    dry_run: bool,
    now_ms: u64,
    zone: TimeZone,
}

impl Prune {
    /// Looks up what a request names.
    pub(crate) async fn of(
        repository: &Repository,
        request: v1::PruneRequest,
        now_ms: u64,
        zone: TimeZone,
    ) -> Result<Self, Failed> {
        let usage = |message: &str| Failed::new(FailureKind::Usage, message);
        let scopes = match (request.volume, request.policy, request.stored_policies) {
            (None, None, true) => stored(repository).await?,
            (Some(volume), Some(policy), false) => {
                let policy = Policy::new(&policy).map_err(|error| {
                    usage(&error.to_string()).with_hint("for instance `--keep-last 3 --keep-daily 7`")
                })?;
                let mut scope = Scope { policy, volumes: Vec::new() };
                for name in std::iter::once(volume).chain(request.others) {
                    let may_be_pattern = !request.names_only && Pattern::is_pattern(&name.name);
                    for found in volumes(repository, name, may_be_pattern).await? {
                        if !scope.volumes.contains(&found) {
                            scope.volumes.push(found);
                        }
                    }
                }
                vec![scope]
            }
            (_, _, true) => return Err(usage("the server's own policies name their volumes themselves")),
            _ => return Err(usage("a volume and a policy are needed")),
        };
        Ok(Self { scopes, dry_run: request.dry_run, now_ms, zone })
    }
}

/// The volumes that a name or a pattern means: as it stands, else as of the host that asks.
async fn volumes(
    repository: &Repository,
    name: v1::VolumeName,
    may_be_pattern: bool,
) -> Result<Vec<(Uuid, String)>, Failed> {
    let mut known = repository.catalogue.names().await?;
    if !may_be_pattern {
        let uuid = repository.volume(Some(name)).await?;
        return Ok(known.into_iter().filter(|(known, _)| *known == uuid).collect());
    }
    let mut texts = vec![name.name.clone()];
    if !name.host.is_empty() {
        texts.push(format!("{}/{}", name.host, name.name));
    }
    // A volume may be called as patterns are: then it alone is meant, and nothing that the pattern would match.
    if let Some(exact) = texts.iter().find_map(|text| known.iter().find(|(_, name)| name == text)) {
        return Ok(vec![exact.clone()]);
    }
    known.retain(|(_, name)| !is_hidden(name));
    for text in &texts {
        let pattern =
            Pattern::new(text).map_err(|error| Failed::new(FailureKind::Usage, error.to_string()))?;
        let found: Vec<_> = known.iter().filter(|(_, name)| pattern.matches(name)).cloned().collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    // Only now, because a name may have such characters in it.
    check_volume_name(&name.name)?;
    Err(Failed::new(FailureKind::NotFound, format!("no volume in the repository matches {}", name.name))
        .with_hint("`thinbak generation list` shows what is there"))
}

/// The stored rules, each with the volumes that no earlier rule is for.
async fn stored(repository: &Repository) -> Result<Vec<Scope>, Failed> {
    let rules = repository.retention();
    if rules.is_empty() {
        return Err(Failed::new(FailureKind::Usage, "the server's configuration has no retention policy")
            .with_hint("add [[retention]] entries to server.toml"));
    }
    let mut scopes: Vec<_> =
        rules.iter().map(|rule| Scope { policy: rule.policy, volumes: Vec::new() }).collect();
    let names = repository.catalogue.names().await?;
    for (uuid, name) in names.into_iter().filter(|(_, name)| !is_hidden(name)) {
        let first = rules.iter().zip(&mut scopes).find(|(rule, _)| rule.volumes.matches(&name));
        if let Some((_, scope)) = first {
            scope.volumes.push((uuid, name));
        }
    }
    Ok(scopes)
}

/// Starts a run; the events end with the summary. Dropping the receiver ends the run after the step that it is in.
pub(crate) fn start(repository: Arc<Repository>, prune: Prune) -> mpsc::Receiver<Told> {
    let (sender, receiver) = mpsc::channel(EVENTS);
    tokio::spawn(run(repository, prune, sender));
    receiver
}

/// Runs to the end, or until nobody listens.
pub(super) async fn run(repository: Arc<Repository>, prune: Prune, sender: mpsc::Sender<Told>) {
    let mut run = Run { sender, summary: v1::PruneSummary::default(), started: Instant::now() };
    let outcome = run.all(&repository, &prune).await;
    if !prune.dry_run {
        repository.metrics.ended(Job::Prune, outcome.is_ok());
    }
    match outcome {
        Ok(()) | Err(End::Gone) => {}
        Err(End::Failed(failed)) => {
            // A client that has gone needs no reason.
            let _ = run.sender.send(Err(failed.into())).await;
        }
    }
    // Who sees the end of the answer may close the repository, and is the last to have it.
    drop(repository);
    drop(run);
}

/// Why a run ends early.
enum End {
    /// The client does not listen any more.
    Gone,
    Failed(Failed),
}

impl From<Failed> for End {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

impl From<crate::CatalogueError> for End {
    fn from(error: crate::CatalogueError) -> Self {
        Self::Failed(error.into())
    }
}

struct Run {
    sender: mpsc::Sender<Told>,
    summary: v1::PruneSummary,
    started: Instant,
}

impl Run {
    async fn all(&mut self, repository: &Repository, prune: &Prune) -> Result<(), End> {
        self.summary.grace_seconds = repository.catalogue.grace_ms().await? / 1000;
        for scope in &prune.scopes {
            let mut groups = HashSet::new();
            for (volume, _) in &scope.volumes {
                let decisions = decide(repository, prune, scope, *volume).await?;
                let kept = decisions.iter().filter(|decision| !decision.removes());
                groups.extend(kept.filter_map(|decision| decision.candidate.group));
            }
            for (volume, name) in &scope.volumes {
                let mut decisions = decide(repository, prune, scope, *volume).await?;
                for decision in decisions.iter_mut().filter(|decision| decision.removes()) {
                    if decision.candidate.group.is_some_and(|group| groups.contains(&group)) {
                        decision.reasons.push(Reason::Group);
                    }
                }
                self.volume(repository, prune, (*volume, name), decisions).await?;
                self.summary.volumes += 1;
            }
        }
        self.summary.seconds = self.started.elapsed().as_secs_f64();
        self.send(Event::Summary(self.summary)).await
    }

    /// Does what was decided about a volume. Events follow what they tell of.
    async fn volume(
        &mut self,
        repository: &Repository,
        prune: &Prune,
        (volume, name): (Uuid, &str),
        decisions: Vec<Decision>,
    ) -> Result<(), End> {
        let mut rest = decisions.as_slice();
        while !rest.is_empty() {
            let mut removed = 0;
            let step = rest.iter().position(|decision| {
                removed += usize::from(decision.removes());
                removed > STEP
            });
            let (now, later) = rest.split_at(step.unwrap_or(rest.len()));
            rest = later;
            let surprises = match prune.dry_run {
                true => HashSet::new(),
                false => remove(repository, prune, volume, now).await?,
            };
            for decision in now {
                let number = decision.candidate.number;
                let surprise = surprises.contains(&number);
                self.decided(name, decision, surprise).await?;
            }
        }
        Ok(())
    }

    async fn decided(&mut self, volume: &str, decision: &Decision, surprise: bool) -> Result<(), End> {
        let remove = decision.removes() && !surprise;
        let reasons = match (decision.removes(), surprise) {
            (true, true) => vec!["was protected meanwhile".to_owned()],
            (true, false) => vec!["no rule keeps it".to_owned()],
            (false, _) => decision.reasons.iter().map(ToString::to_string).collect(),
        };
        match remove {
            true => self.summary.removed += 1,
            false => self.summary.kept += 1,
        }
        self.send(Event::Decision(v1::PruneDecision {
            volume_name: volume.to_owned(),
            number: decision.candidate.number,
            created_at_ms: decision.candidate.created_at_ms,
            remove,
            reasons,
        }))
        .await
    }

    async fn send(&mut self, event: Event) -> Result<(), End> {
        let event = v1::PruneEvent { event: Some(event) };
        self.sender.send(Ok(event)).await.map_err(|_| End::Gone)
    }
}

async fn decide(
    repository: &Repository,
    prune: &Prune,
    scope: &Scope,
    volume: Uuid,
) -> Result<Vec<Decision>, End> {
    let candidates = repository.catalogue.candidates(volume).await?;
    Ok(plan(&scope.policy, candidates, prune.now_ms, &prune.zone))
}

/// Deletes one step of what nothing keeps. Returns the numbers of those that were protected since the plan.
async fn remove(
    repository: &Repository,
    prune: &Prune,
    volume: Uuid,
    decisions: &[Decision],
) -> Result<HashSet<u64>, End> {
    if *repository.stopping().borrow() {
        let message = "pruning was ended: the server is stopping";
        return Err(Failed::new(FailureKind::Busy, message)
            .with_hint("the next run goes on from there")
            .into());
    }
    let keys: Vec<_> = decisions
        .iter()
        .filter(|decision| decision.removes())
        .map(|decision| GenerationKey { volume, number: decision.candidate.number })
        .collect();
    let outcomes = delete::delete(repository, &keys, prune.now_ms).await?;
    let kept =
        |outcome: &Result<v1::Generation, Kept>| matches!(outcome, Err(Kept::Protected | Kept::Newest));
    Ok(outcomes.into_iter().filter(|(_, outcome)| kept(outcome)).map(|(key, _)| key.number).collect())
}
