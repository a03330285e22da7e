//! The network: every message of every call waits until it is let through, one at a time, in an order that the seed
//! decides among those that wait; and every connection has a fate.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{Stream, stream};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use parking_lot::Mutex;
use prost::Message as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use thinbak_agent::channel::{BoxedChannel, ChannelError};
use thinbak_proto::v1;
use tokio::sync::{Notify, oneshot, watch};
use tonic::{Status, body::Body, codegen::http, service::Routes};
use tower::util::BoxCloneSyncService;

/// How often others may run before a message is let through: so that more than one waits.
const PATIENCE: u32 = 8;

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Fine,
    /// Nobody answers.
    Refused,
    /// Cut when so many messages have gone to the server.
    CutAsking(u64),
    /// Cut when so many messages have come back.
    CutAnswering(u64),
    /// Cut when the answer is on its way that says that a generation was committed.
    LoseCommit,
}

/// Which message: client, call, direction, number.
type Key = (usize, u64, bool, u64);

pub(crate) struct Network {
    server: Mutex<Option<Line>>,
    waiting: Mutex<BTreeMap<Key, oneshot::Sender<()>>>,
    arrived: Notify,
    /// What each client's connections meet, in the order of its calls.
    clients: Vec<Client>,
    /// Share of connections that something happens to.
    trouble: Mutex<f64>,
    lost_commits: AtomicU64,
    cut: AtomicU64,
}

struct Client {
    random: Mutex<StdRng>,
    calls: AtomicU64,
}

#[derive(Clone)]
struct Line {
    routes: Routes,
    /// Turns to true when the server is no more.
    down: watch::Receiver<bool>,
}

impl Network {
    /// Between so many clients and a server that is not there yet.
    pub(crate) fn new(seed: u64, clients: usize) -> Arc<Self> {
        let client = |number: usize| Client {
            random: Mutex::new(StdRng::seed_from_u64(seed ^ (number as u64 + 1) << 32)),
            calls: AtomicU64::new(0),
        };
        let network = Arc::new(Self {
            server: Mutex::default(),
            waiting: Mutex::default(),
            arrived: Notify::new(),
            clients: (0..clients).map(client).collect(),
            trouble: Mutex::new(0.0),
            lost_commits: AtomicU64::new(0),
            cut: AtomicU64::new(0),
        });
        tokio::spawn(deliver(Arc::clone(&network), StdRng::seed_from_u64(seed ^ 0x5eed)));
        network
    }

    /// A server can be reached.
    pub(crate) fn connect(&self, routes: Routes, down: watch::Receiver<bool>) {
        *self.server.lock() = Some(Line { routes, down });
    }

    /// No server can be reached any more.
    pub(crate) fn disconnect(&self) {
        self.server.lock().take();
    }

    /// Something happens to this share of the connections from now on.
    pub(crate) fn set_trouble(&self, share: f64) {
        *self.trouble.lock() = share;
    }

    /// Connections cut, and of them those that were to say that a generation was committed.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.cut.load(Ordering::Relaxed), self.lost_commits.load(Ordering::Relaxed))
    }

    /// The way of one client to the server.
    pub(crate) fn channel(self: &Arc<Self>, client: usize) -> BoxedChannel {
        let network = Arc::clone(self);
        BoxCloneSyncService::new(tower::service_fn(move |request| {
            let network = Arc::clone(&network);
            async move { Ok::<_, ChannelError>(network.call(client, request).await) }
        }))
    }

    fn fate(&self, client: usize) -> Fate {
        let mut random = self.clients[client].random.lock();
        // Drawn in any case, so that a calm round does not shift what comes after it.
        let (share, what, when) =
            (random.random::<f64>(), random.random_range(0..10), random.random_range(0..12));
        if share >= *self.trouble.lock() {
            return Fate::Fine;
        }
        match what {
            0 => Fate::Refused,
            1..=3 => Fate::CutAsking(when),
            4..=6 => Fate::CutAnswering(when),
            _ => Fate::LoseCommit,
        }
    }

    async fn call(self: Arc<Self>, client: usize, request: http::Request<Body>) -> http::Response<Body> {
        let call = self.clients[client].calls.fetch_add(1, Ordering::Relaxed);
        let fate = self.fate(client);
        let line = self.server.lock().clone();
        let (Some(line), true) = (line, fate != Fate::Refused) else {
            return Status::unavailable("connection refused").into_http();
        };
        let cut = watch::Sender::new(false);
        let message = |answering| Message { network: Arc::clone(&self), key: (client, call, answering, 0) };
        let wire =
            |answering| Wire { message: message(answering), fate, cut: cut.clone(), down: line.down.clone() };
        let request = request.map(|body| Body::new(StreamBody::new(wire(false).carry(body))));
        let mut routes = line.routes.clone().prepare();
        let mut down = line.down.clone();
        let response = tokio::select! {
            biased;
            _ = down.wait_for(|down| *down) => return Status::unavailable("connection reset").into_http(),
            response = tower::Service::call(&mut routes, request) => response,
        };
        match response {
            Ok(response) => response.map(|body| Body::new(StreamBody::new(wire(true).carry(body)))),
            Err(never) => match never {},
        }
    }
}

/// Lets one waiting message through at a time.
async fn deliver(network: Arc<Network>, mut random: StdRng) {
    loop {
        for _ in 0..PATIENCE {
            tokio::task::yield_now().await;
        }
        let next = {
            let mut waiting = network.waiting.lock();
            let count = waiting.len();
            let key = (count > 0)
                .then(|| random.random_range(0..count))
                .and_then(|n| waiting.keys().nth(n).copied());
            key.and_then(|key| waiting.remove(&key))
        };
        match next {
            // A connection that is gone does not wait.
            Some(next) => drop(next.send(())),
            None => network.arrived.notified().await,
        }
    }
}

struct Message {
    network: Arc<Network>,
    key: Key,
}

impl Message {
    /// Waits until the message is let through; returns how many went before it.
    async fn pass(&mut self) -> u64 {
        let (sender, passed) = oneshot::channel();
        self.network.waiting.lock().insert(self.key, sender);
        self.network.arrived.notify_one();
        // The one who delivers lives as long as the network.
        let _ = passed.await;
        let before = self.key.3;
        self.key.3 += 1;
        before
    }
}

/// One direction of a connection.
struct Wire {
    message: Message,
    fate: Fate,
    cut: watch::Sender<bool>,
    down: watch::Receiver<bool>,
}

impl Wire {
    fn carry(self, body: Body) -> impl Stream<Item = Result<Frame<Bytes>, io::Error>> {
        stream::unfold(Some((self, body)), async |state| {
            let (mut wire, mut body) = state?;
            match wire.frame(&mut body).await {
                Ok(Some(frame)) => Some((Ok(frame), Some((wire, body)))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// The next message, once it has got through.
    async fn frame(&mut self, body: &mut Body) -> Result<Option<Frame<Bytes>>, io::Error> {
        let (mut down, mut cut) = (self.down.clone(), self.cut.subscribe());
        let frame = async {
            let frame = body.frame().await.transpose().map_err(io::Error::other)?;
            let Some(frame) = frame else { return Ok(None) };
            let before = self.message.pass().await;
            self.message.network.judge(self.fate, self.message.key.2, before, &frame, &self.cut)?;
            Ok(Some(frame))
        };
        tokio::select! {
            biased;
            _ = down.wait_for(|down| *down) => Err(io::ErrorKind::ConnectionReset.into()),
            _ = cut.wait_for(|cut| *cut) => Err(io::ErrorKind::ConnectionReset.into()),
            frame = frame => frame,
        }
    }
}

impl Network {
    /// Cuts a connection whose time has come.
    fn judge(
        &self,
        fate: Fate,
        answering: bool,
        before: u64,
        frame: &Frame<Bytes>,
        cut: &watch::Sender<bool>,
    ) -> io::Result<()> {
        let ends = match fate {
            Fate::Fine | Fate::Refused => false,
            Fate::CutAsking(messages) => !answering && before >= messages,
            Fate::CutAnswering(messages) => answering && before >= messages,
            Fate::LoseCommit => {
                let lost = answering && frame.data_ref().is_some_and(|data| says_committed(data));
                self.lost_commits.fetch_add(lost.into(), Ordering::Relaxed);
                lost
            }
        };
        if ends {
            self.cut.fetch_add(1, Ordering::Relaxed);
            cut.send_replace(true);
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

/// Whether one of the messages in a frame says that a generation was committed.
fn says_committed(mut data: &[u8]) -> bool {
    while let Some((head, rest)) = data.split_first_chunk::<5>() {
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let Some((message, rest)) = rest.split_at_checked(len) else { return false };
        if let Ok(v1::BackupResponse { message: Some(v1::backup_response::Message::Committed(_)) }) =
            v1::BackupResponse::decode(message)
        {
            return true;
        }
        data = rest;
    }
    false
}
