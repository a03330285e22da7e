//! One seed's world: rounds in which agents act while something goes wrong, and the check after each.

use std::sync::{Arc, atomic::Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::join_all;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use thinbak_proto::FailureKind;

use crate::{
    agent::{Agent, Clients, Deeds},
    checker::{check, check_nothing_leaks, collect},
    network::Network,
    server::{End, Server},
};

const AGENTS: usize = 3;
const ROUNDS: usize = 12;
const DAY_MS: u64 = 86_400_000;

/// What happened, so that it can be seen that it did.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    done: Deeds,
    failures: u64,
    generations: u64,
    /// Generations that are there although their agents were never told.
    unheard: u64,
    connections_cut: u64,
    commits_lost: u64,
    operations_failed: u64,
    powers_lost: u64,
    kills: u64,
    collections: u64,
    rebuilds: u64,
}

impl Seen {
    pub(crate) fn add(&mut self, other: &Self) {
        self.done.add(&other.done);
        self.failures += other.failures;
        self.generations += other.generations;
        self.unheard += other.unheard;
        self.connections_cut += other.connections_cut;
        self.commits_lost += other.commits_lost;
        self.operations_failed += other.operations_failed;
        self.powers_lost += other.powers_lost;
        self.kills += other.kills;
        self.collections += other.collections;
        self.rebuilds += other.rebuilds;
    }

    /// Everything that these seeds are there for has happened.
    pub(crate) fn assert_eventful(&self) {
        let Self { done, failures, generations, unheard, connections_cut, rebuilds, .. } = *self;
        let Deeds { backups, undeletions, prunes, held, refused } = done;
        let happened = [failures, generations, unheard, connections_cut, rebuilds];
        let done = [backups, undeletions, prunes, held, refused];
        let faults =
            [self.commits_lost, self.operations_failed, self.powers_lost, self.kills, self.collections];
        assert!(happened.into_iter().chain(done).chain(faults).all(|count| count > 0), "{self:?}");
    }
}

/// What goes wrong in a round.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Trouble {
    Nothing,
    Network(f64),
    /// One operation of the disk, so many from now.
    Disk(u64),
    /// Power fails before one of the next operations.
    Power(u64),
    /// The disk fails for good, the server goes on for a while, then power fails.
    Dying(u64),
}

pub(crate) struct World {
    random: StdRng,
    network: Arc<Network>,
    server: Server,
    agents: Vec<Agent>,
    /// Who frees space, now and then.
    collector: Clients,
    /// Whose connections nothing happens to.
    checker: Clients,
    seen: Seen,
}

impl World {
    pub(crate) async fn new(seed: u64) -> Result<Self> {
        let mut random = StdRng::seed_from_u64(seed);
        let network = Network::new(seed, AGENTS + 2);
        let mut server = Server::new(seed).await?;
        server.start(&network).await?;
        let agent =
            |number| Agent::new(number, network.channel(number), StdRng::seed_from_u64(random.random()));
        let agents = (0..AGENTS).map(agent).collect();
        let collector = Clients(network.channel(AGENTS));
        let checker = Clients(network.channel(AGENTS + 1));
        Ok(Self { random, network, server, agents, collector, checker, seen: Seen::default() })
    }

    pub(crate) async fn run(mut self) -> Result<Seen> {
        for round in 0..ROUNDS {
            let trouble = self.draw_trouble();
            self.round(trouble).await.with_context(|| format!("round {round}, {trouble:?}"))?;
        }
        self.restart(End::Closed, true).await?;
        let (generations, unheard) = self.check().await.context("at the end")?;
        // What is in the pack being written is looked at when that is complete; and a tombstone goes when the manifest that
        // it ends is gone.
        for _ in 0..3 {
            collect(&self.checker, false, Some(0)).await?;
            // Not from a rebuilt catalogue: it may know of deletions and commits that nobody was told of.
            self.restart(End::Closed, false).await?;
        }
        check_nothing_leaks(&self.checker).await?;
        self.check().await.context("after the last collection")?;
        let (connections_cut, commits_lost) = self.network.counts();
        let mut done = Deeds::default();
        self.agents.iter().for_each(|agent| done.add(&agent.done));
        Ok(Seen { generations, unheard, connections_cut, commits_lost, done, ..self.seen })
    }

    fn draw_trouble(&mut self) -> Trouble {
        let random = &mut self.random;
        // A backup takes some three to ten operations of the disk.
        let soon = random.random_range(1..16);
        match random.random_range(0..10) {
            0 | 1 => Trouble::Nothing,
            2..5 => Trouble::Network(random.random_range(0.1..0.6)),
            5 => Trouble::Disk(soon),
            6..9 => Trouble::Power(soon),
            _ => Trouble::Dying(soon),
        }
    }

    /// Some agents act at the same time.
    async fn round(&mut self, trouble: Trouble) -> Result<()> {
        let now = self.server.operations();
        match trouble {
            Trouble::Nothing => {}
            Trouble::Network(share) => self.network.set_trouble(share),
            Trouble::Disk(after) => self.server.fail(now + after),
            Trouble::Power(after) => self.server.lose_power_before(now + after)?,
            Trouble::Dying(after) => self.server.fail_from(now + after),
        }
        self.pass_time();
        let mut places: Vec<usize> = (0..AGENTS).collect();
        places.shuffle(&mut self.random);
        places.truncate(self.random.random_range(1..=AGENTS));
        let acting = self.agents.iter_mut().enumerate().filter(|(place, _)| places.contains(place));
        let collects = self.random.random_bool(0.4);
        // Mostly so that deletions can be undone for a while.
        let grace_ms = if self.random.random_bool(0.3) { Some(0) } else { Some(2 * DAY_MS) };
        let collector = self.collector.clone();
        let collecting = async {
            match collects {
                true => collect(&collector, false, grace_ms).await.map(|_| ()),
                false => Ok(()),
            }
        };
        let acting = join_all(acting.map(|(_, agent)| async move {
            let first = agent.act().await;
            // The same agent again: what it was not told, it does once more.
            (first, agent.act().await)
        }));
        let (outcomes, collected) = futures::join!(acting, collecting);
        self.seen.collections += u64::from(collects && collected.is_ok());
        let failures = outcomes.into_iter().flat_map(|(one, other)| [one.err(), other.err()]);
        for failed in failures.chain([collected.err()]).flatten() {
            self.seen.failures += 1;
            match failed.kind {
                FailureKind::Damaged | FailureKind::Usage => bail!("{:?}: {failed}", failed.kind),
                _ => ensure!(trouble != Trouble::Nothing, "it failed for no reason: {failed}"),
            }
        }
        self.network.set_trouble(0.0);
        self.end_of(trouble, now).await?;
        self.check().await?;
        Ok(())
    }

    fn pass_time(&mut self) {
        let step = self.random.random_range(0..DAY_MS);
        let clock = &self.server.clock;
        // Sometimes somebody sets it back; by so little that generations still get later and later.
        match self.random.random_bool(0.1) {
            true => clock.fetch_sub(step / 144, Ordering::Relaxed),
            false => clock.fetch_add(step, Ordering::Relaxed),
        };
    }

    async fn end_of(&mut self, trouble: Trouble, before: u64) -> Result<()> {
        let index_lost = self.random.random_bool(0.4);
        let done = self.server.operations() - before;
        let end = match trouble {
            Trouble::Power(after) | Trouble::Dying(after) => {
                self.seen.powers_lost += u64::from(done >= after);
                Some(End::PowerLost { index_lost })
            }
            Trouble::Disk(after) => {
                self.seen.operations_failed += u64::from(done >= after);
                None
            }
            Trouble::Nothing | Trouble::Network(_) => None,
        };
        let end = end.or_else(|| match self.random.random_range(0..6) {
            0 => Some(End::Killed),
            1 => Some(End::Closed),
            _ => None,
        });
        match end {
            Some(end) => self.restart(end, true).await,
            None => {
                self.server.recover();
                Ok(())
            }
        }
    }

    async fn restart(&mut self, end: End, may_rebuild: bool) -> Result<()> {
        self.seen.kills += u64::from(end == End::Killed);
        self.server.end(&self.network, end, &mut self.random).await?;
        if may_rebuild && self.random.random_bool(0.25) {
            self.seen.rebuilds += 1;
            self.server.rebuild_catalogue().await?;
        }
        self.server.start(&self.network).await
    }

    async fn check(&mut self) -> Result<(u64, u64)> {
        let manifests = self.server.manifests()?;
        check(&self.checker, &self.agents, &manifests).await
    }
}
