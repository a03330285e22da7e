//! Connections as they come in.

use std::{collections::VecDeque, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::AbortHandle,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Certificates, Peer,
    connection::{Connection, Stream},
};

/// Who has not finished the handshake by then is turned away.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at one time. One more ends the one that was begun first: who only opens connections cannot keep others
/// out, unless so many come within the time of one handshake.
const MAX_HANDSHAKES: usize = 256;
/// Connections that are served at one time; more are closed at once.
const MAX_CONNECTIONS: usize = 512;
/// Before the next attempt when a connection cannot be taken, as where no file can be opened any more.
const PAUSE: Duration = Duration::from_millis(50);

type Served = mpsc::Sender<io::Result<Connection>>;

/// The connections that come to a listener, ready to be served, until the stream is dropped. With certificates each
/// has finished the TLS handshake.
pub(crate) fn incoming(
    listener: TcpListener,
    certificates: Option<Arc<Certificates>>,
) -> ReceiverStream<io::Result<Connection>> {
    let (served, connections) = mpsc::channel(1);
    tokio::spawn(accept(listener, certificates, served));
    ReceiverStream::new(connections)
}

async fn accept(listener: TcpListener, certificates: Option<Arc<Certificates>>, served: Served) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut handshakes = VecDeque::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be taken");
                    sleep(PAUSE).await;
                    continue;
                }
            },
            () = served.closed() => break,
        };
        // Not worth a connection.
        let _ = stream.set_nodelay(true);
        match &certificates {
            None => {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                let connection =
                    Connection { stream: Stream::Plain(stream), peer: Peer(peer), _place: place };
                if served.send(Ok(connection)).await.is_err() {
                    break;
                }
            }
            Some(certificates) => {
                make_room(&mut handshakes);
                let acceptor = TlsAcceptor::from(certificates.current());
                let handshake = shake_hands(acceptor, stream, peer, Arc::clone(&places), served.clone());
                handshakes.push_back(tokio::spawn(handshake).abort_handle());
            }
        }
    }
    handshakes.iter().for_each(AbortHandle::abort);
}

fn make_room(handshakes: &mut VecDeque<AbortHandle>) {
    if handshakes.len() < MAX_HANDSHAKES {
        return;
    }
    handshakes.retain(|handshake| !handshake.is_finished());
    if handshakes.len() >= MAX_HANDSHAKES
        && let Some(first) = handshakes.pop_front()
    {
        first.abort();
    }
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    places: Arc<Semaphore>,
    served: Served,
) {
    let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!(%peer, "a TLS handshake was not finished in time"),
    };
    let place: Result<OwnedSemaphorePermit, _> = places.try_acquire_owned();
    let Ok(place) = place else {
        return tracing::warn!(%peer, "a connection was closed: there are {MAX_CONNECTIONS} already");
    };
    let connection = Connection { stream: Stream::Tls(Box::new(stream)), peer: Peer(peer), _place: place };
    // Nobody serves any more.
    let _ = served.send(Ok(connection)).await;
}
