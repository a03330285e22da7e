//! An agent with its volumes: backs up as the real job does, with the real sink, and remembers what it was told. What it
//! does beside that is in [`deeds`].

#[path = "deeds.rs"]
mod deeds;

use std::{collections::BTreeMap, sync::Arc};

use rand::{Rng as _, rngs::StdRng};
use thinbak_agent::{
    channel::BoxedChannel,
    sink::{Commit, GenerationSink},
    source::GenerationSource,
    stream::{Progress, pump},
};
use thinbak_proto::{
    Failed, FailureKind, MAX_MESSAGE_LEN,
    v1::{
        BackupBegin, Generation, GenerationSelector, GetGenerationRequest, Point, VolumeName,
        content_client::ContentClient, generation_selector::Which, ingest_client::IngestClient,
        repository_client::RepositoryClient,
    },
};
use uuid::Uuid;

use crate::volume::{Image, ImageSink, ImageSource};

/// What became of something that was asked of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nothing: it may have been done.
    Nothing,
    /// It was done.
    Done,
}

/// A generation that was to be.
pub(crate) struct Attempt {
    pub(crate) image: Arc<Image>,
    pub(crate) committed: Option<Generation>,
}

/// The last generation that the agent knows, and the snapshot that is its content.
#[derive(Clone)]
struct Base {
    generation: Generation,
    image: Arc<Image>,
}

pub(crate) struct Volume {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    image: Image,
    base: Option<Base>,
    /// By the identity of the point, in the order in which they were made.
    pub(crate) attempts: BTreeMap<String, Attempt>,
    pub(crate) deletions: BTreeMap<u64, Heard>,
    last_deleted: Option<u64>,
}

pub(crate) struct Agent {
    channel: BoxedChannel,
    random: StdRng,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) done: Deeds,
}

/// What agents did that was not refused, however it ended.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Deeds {
    pub(crate) backups: u64,
    /// Deletions undone.
    pub(crate) undeletions: u64,
    pub(crate) prunes: u64,
    /// Generations that were read to the end although they were deleted and collected meanwhile.
    pub(crate) held: u64,
    /// Backups refused that named chunks as present without asking.
    pub(crate) refused: u64,
}

impl Deeds {
    pub(crate) fn add(&mut self, other: &Self) {
        self.backups += other.backups;
        self.undeletions += other.undeletions;
        self.prunes += other.prunes;
        self.held += other.held;
        self.refused += other.refused;
    }
}

/// A client's view of the services.
#[derive(Clone)]
pub(crate) struct Clients(pub(crate) BoxedChannel);

impl Clients {
    pub(crate) fn repository(&self) -> RepositoryClient<BoxedChannel> {
        RepositoryClient::new(self.0.clone()).max_decoding_message_size(MAX_MESSAGE_LEN)
    }

    fn content(&self) -> ContentClient<BoxedChannel> {
        ContentClient::new(self.0.clone()).max_decoding_message_size(MAX_MESSAGE_LEN)
    }

    fn ingest(&self) -> IngestClient<BoxedChannel> {
        IngestClient::new(self.0.clone()).max_decoding_message_size(MAX_MESSAGE_LEN)
    }

    /// Restores a generation and says where it is not `image`.
    pub(crate) async fn compare(
        &self,
        generation: &Generation,
        image: &Image,
    ) -> Result<Option<String>, Failed> {
        let mut source = GenerationSource::new(self.content(), None, generation, None)?;
        let mut sink = ImageSink::default();
        pump(&mut source, &mut sink, &Progress::default()).await?;
        if generation.size_bytes != image.size {
            return Ok(Some(format!("{} bytes instead of {}", generation.size_bytes, image.size)));
        }
        Ok(sink.difference(image))
    }
}

fn named(volume: &Volume, number: u64) -> (Option<VolumeName>, Option<GenerationSelector>) {
    let name = VolumeName { name: volume.name.clone(), host: String::new() };
    (Some(name), Some(GenerationSelector { which: Some(Which::Number(number)) }))
}

impl Agent {
    pub(crate) fn new(number: usize, channel: BoxedChannel, mut random: StdRng) -> Self {
        let volume = |volume: u64| Volume {
            uuid: Uuid::from_u128(0x4000_8000 << 64 | (number as u128) << 8 | u128::from(volume + 1)),
            name: format!("host{number}/pool/v{volume}"),
            image: Image::new(&mut random),
            base: None,
            attempts: BTreeMap::new(),
            deletions: BTreeMap::new(),
            last_deleted: None,
        };
        let volumes = (0..2).map(volume).collect();
        Self { channel, random, volumes, done: Deeds::default() }
    }

    /// Does one thing. An error is what the job would report.
    pub(crate) async fn act(&mut self) -> Result<(), Failed> {
        let which = self.random.random_range(0..self.volumes.len());
        match self.random.random_range(0..15) {
            0..6 => self.back_up(which).await,
            6..8 => self.delete(which).await,
            8 => self.protect(which).await,
            9 => self.prune(which).await,
            10 | 11 => self.undelete(which).await,
            12 => self.hold(which).await,
            13 => self.presume(which).await,
            _ => self.restore(which).await,
        }
    }

    async fn back_up(&mut self, which: usize) -> Result<(), Failed> {
        self.done.backups += 1;
        let clients = Clients(self.channel.clone());
        let Self { random, volumes, .. } = self;
        let volume = &mut volumes[which];
        if random.random_bool(0.85) {
            volume.image.change(random);
        }
        let (image, batch) = (Arc::new(volume.image.clone()), random.random_range(1..64));
        volume.check_base(&clients).await?;
        let (identity, begin) = volume.begin(&image, volume.base.clone().as_ref());
        let base = volume.base.as_ref();
        let mut sink = GenerationSink::begin(clients.ingest(), begin).await?;
        let mut source = ImageSource::new(Arc::clone(&image), base.map(|base| &*base.image), batch);
        pump(&mut source, &mut sink, &Progress::default()).await?;
        let generation = match sink.commit().await? {
            Commit::Done { generation, .. } => *generation,
            // The job would begin again; here the next step of the agent does.
            Commit::Incomplete(chunks) => {
                let message = format!("{chunks} chunks were found damaged since they were asked for");
                return Err(Failed::new(FailureKind::Damaged, message));
            }
        };
        volume.committed(&identity, generation, &image);
        Ok(())
    }

    async fn restore(&mut self, which: usize) -> Result<(), Failed> {
        let Some(number) = self.any_generation(which) else { return Ok(()) };
        let volume = &self.volumes[which];
        let clients = Clients(self.channel.clone());
        let (name, selector) = named(volume, number);
        let request = GetGenerationRequest { volume: name, selector };
        let generation = clients.repository().get_generation(request).await?.into_inner();
        let image = volume.image_of(&generation).map_err(|why| Failed::new(FailureKind::Damaged, why))?;
        match clients.compare(&generation, &image).await? {
            None => Ok(()),
            Some(why) => Err(Failed::new(FailureKind::Damaged, why)),
        }
    }

    fn any_generation(&mut self, which: usize) -> Option<u64> {
        let volume = &self.volumes[which];
        let heard: Vec<u64> = volume.heard().map(|(number, _)| number).collect();
        let left: Vec<u64> =
            heard.into_iter().filter(|number| !volume.deletions.contains_key(number)).collect();
        let place = self.random.random_range(0..left.len().max(1));
        left.get(place).copied()
    }
}

impl Volume {
    /// Notes an attempt, and how it begins: its identity is the point's.
    fn begin(&mut self, image: &Arc<Image>, base: Option<&Base>) -> (String, BackupBegin) {
        let identity = format!("{}-{:04}", self.uuid, self.attempts.len());
        self.attempts.insert(identity.clone(), Attempt { image: Arc::clone(image), committed: None });
        let begin = BackupBegin {
            volume_uuid: self.uuid.to_string(),
            volume_name: self.name.clone(),
            size_bytes: image.size,
            parent: base.map_or(0, |base| base.generation.number),
            parent_root: base.map(|base| base.generation.root.clone()).unwrap_or_default(),
            point: Some(Point { identity: identity.clone(), ..Point::default() }),
            ..BackupBegin::default()
        };
        (identity, begin)
    }

    fn committed(&mut self, identity: &str, generation: Generation, image: &Arc<Image>) {
        if let Some(attempt) = self.attempts.get_mut(identity) {
            attempt.committed = Some(generation.clone());
        }
        self.base = Some(Base { generation, image: Arc::clone(image) });
    }

    /// The generations that the agent was told of.
    pub(crate) fn heard(&self) -> impl Iterator<Item = (u64, &Generation)> {
        let committed = self.attempts.values().filter_map(|attempt| attempt.committed.as_ref());
        committed.map(|generation| (generation.number, generation))
    }

    /// What a generation on the server must hold, by the point that it says it is of.
    pub(crate) fn image_of(&self, generation: &Generation) -> Result<Arc<Image>, String> {
        let identity = generation.point.as_ref().map(|point| point.identity.as_str()).unwrap_or_default();
        let attempt = self.attempts.get(identity);
        attempt
            .map(|attempt| Arc::clone(&attempt.image))
            .ok_or_else(|| format!("{identity} was never backed up"))
    }

    /// As the real job: a base that the server no longer has as it was is given up.
    async fn check_base(&mut self, clients: &Clients) -> Result<(), Failed> {
        let Some(base) = &self.base else { return Ok(()) };
        let (volume, selector) = named(self, base.generation.number);
        let found = clients.repository().get_generation(GetGenerationRequest { volume, selector }).await;
        match found.map_err(Failed::from) {
            Ok(found) if found.get_ref().root == base.generation.root => {}
            Ok(_) => self.base = None,
            // Nobody who answers is told apart from a server that says so: it has a hint only then.
            Err(failed) if failed.kind == FailureKind::NotFound && !is_unreachable(&failed) => {
                self.base = None
            }
            Err(failed) => return Err(failed),
        }
        Ok(())
    }
}

fn is_unreachable(failed: &Failed) -> bool {
    failed.message.starts_with("connection re")
}
