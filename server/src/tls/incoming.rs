//! Connections as they come in.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::AbortHandle,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Certificates, Peer,
    connection::{Connection, Stream},
    places::Places,
};

/// Who has not finished the handshake by then is turned away.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at one time. One more ends the one that was begun first of the address that has the most: who only opens
/// connections is in the way of nobody at another address.
const MAX_HANDSHAKES: usize = 256;
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
    let places = Places::default();
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
                // Only the loopback, where one address is everybody.
                let Some(place) = places.take_any(peer.ip()) else { continue };
                let connection =
                    Connection { stream: Stream::Plain(stream), peer: Peer(peer), _place: place };
                if served.send(Ok(connection)).await.is_err() {
                    break;
                }
            }
            Some(certificates) => {
                if places.is_full(peer.ip()) {
                    continue;
                }
                make_room(&mut handshakes);
                let acceptor = TlsAcceptor::from(certificates.current());
                let handshake = shake_hands(acceptor, stream, peer, places.clone(), served.clone());
                handshakes.push_back((peer.ip(), tokio::spawn(handshake).abort_handle()));
            }
        }
    }
    handshakes.iter().for_each(|(_, handshake)| handshake.abort());
}

fn make_room(handshakes: &mut VecDeque<(IpAddr, AbortHandle)>) {
    if handshakes.len() < MAX_HANDSHAKES {
        return;
    }
    handshakes.retain(|(_, handshake)| !handshake.is_finished());
    if handshakes.len() < MAX_HANDSHAKES {
        return;
    }
    if let Some((_, first)) = first_of_most(handshakes).and_then(|index| handshakes.remove(index)) {
        first.abort();
    }
}

/// Where the first one is of the address that has the most.
fn first_of_most<T>(of_addresses: &VecDeque<(IpAddr, T)>) -> Option<usize> {
    let mut counts = HashMap::new();
    for (address, _) in of_addresses {
        *counts.entry(*address).or_insert(0_usize) += 1;
    }
    let most = counts.values().max().copied()?;
    of_addresses.iter().position(|(address, _)| counts.get(address) == Some(&most))
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    places: Places,
    served: Served,
) {
    let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!(%peer, "a TLS handshake was not finished in time"),
    };
    let Some(place) = places.take(peer.ip()) else {
        return tracing::warn!(%peer, "a connection was closed: there are too many already");
    };
    let connection = Connection { stream: Stream::Tls(Box::new(stream)), peer: Peer(peer), _place: place };
    // Nobody serves any more.
    let _ = served.send(Ok(connection)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_by_the_address_that_has_the_most() {
        let [many, few] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let mut waiting = VecDeque::from([(few, ()), (many, ()), (few, ()), (many, ()), (many, ())]);
        assert_eq!(first_of_most(&waiting), Some(1));
        waiting.drain(3..);
        assert_eq!(first_of_most(&waiting), Some(0));
        waiting.clear();
        assert_eq!(first_of_most(&waiting), None);
    }
}
