//! Answers that end when their caller may have no more of them, also while nobody takes them.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{stream, task::AtomicWaker};
use parking_lot::Mutex;
use thinbak_proto::Failed;
use tokio::{sync::OwnedSemaphorePermit, task::JoinSet};
use tonic::Status;

use super::gate::Answers;

/// What a call holds (locks, pins) goes with it.
struct Running<T> {
    answers: Answers<T>,
    /// Among the calls of its token.
    _place: Option<Arc<OwnedSemaphorePermit>>,
}

struct Watch<T> {
    /// Gone when it is over.
    running: Mutex<Option<Running<T>>>,
    why: Mutex<Option<Failed>>,
    waker: AtomicWaker,
}

impl<T> Watch<T> {
    fn poll(&self, context: &mut Context<'_>) -> Poll<Option<Result<T, Status>>> {
        self.waker.register(context.waker());
        let mut running = self.running.lock();
        let Some(Running { answers, .. }) = running.as_mut() else {
            return Poll::Ready(self.why.lock().take().map(|failed| Err(failed.into())));
        };
        let next = ready!(answers.as_mut().poll_next(context));
        if next.is_none() {
            *running = None;
        }
        Poll::Ready(next)
    }
}

/// `answers` until `ended` says why there are no more. A client that stops reading keeps nothing by it.
pub(super) fn watched<T: Send + 'static>(
    answers: Answers<T>,
    place: Option<Arc<OwnedSemaphorePermit>>,
    ended: impl Future<Output = Failed> + Send + 'static,
) -> Answers<T> {
    let running = Mutex::new(Some(Running { answers, _place: place }));
    let watch = Arc::new(Watch { running, why: Mutex::default(), waker: AtomicWaker::new() });
    let watched = Arc::clone(&watch);
    // Goes with the stream.
    let mut watcher = JoinSet::new();
    watcher.spawn(async move {
        let failed = ended.await;
        *watched.why.lock() = Some(failed);
        let over = watched.running.lock().take();
        drop(over);
        watched.waker.wake();
    });
    Box::pin(stream::poll_fn(move |context| {
        let _ = &watcher;
        watch.poll(context)
    }))
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use thinbak_proto::FailureKind;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_a_call_holds_goes_with_its_caller_though_nobody_reads() {
        let (held, mut over) = oneshot::channel::<()>();
        let answers = stream::once(async { Ok(1) }).chain(stream::once(async move {
            let _held = held;
            std::future::pending().await
        }));
        let (end, ended) = oneshot::channel();
        let ended = async { ended.await.unwrap() };
        let mut answers = watched(Box::pin(answers), None, ended);
        assert_eq!(answers.next().await.unwrap().unwrap(), 1);
        assert!(over.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        end.send(Failed::new(FailureKind::Denied, "revoked")).unwrap();
        over.await.unwrap_err();
        assert_eq!(answers.next().await.unwrap().unwrap_err().code(), tonic::Code::PermissionDenied);
        assert!(answers.next().await.is_none());
    }
}
