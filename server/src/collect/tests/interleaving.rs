//! A backup is told of dying chunks at every step of a collection.

use std::sync::Arc;

use futures::{FutureExt as _, future::BoxFuture};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::*;
use crate::ingest::tests::client::{Backup, CHUNK, after, full, full_chunk, id, new, present};

/// Where in a collection something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Before,
    AfterMark,
    BeforeFirstPack,
    AfterMove,
    AfterLastPack,
    After,
}

const STEPS: [Step; 6] =
    [Step::Before, Step::AfterMark, Step::BeforeFirstPack, Step::AfterMove, Step::AfterLastPack, Step::After];

/// Runs a collection, and `act` at one of its steps.
async fn collect_and(place: &Place, at: Step, act: BoxFuture<'static, ()>) {
    let act = Arc::new(Mutex::new(Some(act)));
    let once = {
        let act = Arc::clone(&act);
        move || {
            let act = Arc::clone(&act);
            async move {
                let act = act.lock().await.take();
                if let Some(act) = act {
                    act.await;
                }
                Ok(())
            }
            .boxed()
        }
    };
    if at == Step::Before {
        once().await.unwrap();
    }
    let mut progress = 0;
    let mut report = |event: Event| {
        let now = match event {
            Event::Plan(_) => Step::AfterMark,
            Event::Progress(_) => {
                progress += 1;
                if progress == 1 { Step::BeforeFirstPack } else { Step::AfterMove }
            }
            Event::Pack(_) => return async { Ok(()) }.boxed(),
            Event::Summary(_) => Step::AfterLastPack,
        };
        if now == at { once() } else { async { Ok(()) }.boxed() }
    };
    run(&place.repository, ALL, &mut report).await.unwrap();
    // Of a step that did not come, too: then nothing was to be done there.
    once().await.unwrap();
}

/// A repository in one pack of which a part is dying: chunks 10 to 19 are of a generation that is deleted.
async fn dying() -> (Arc<Place>, v1::Generation) {
    let place = Place::new().await;
    let begin = full(Uuid::new_v4(), "h/p/v", 200 * CHUNK);
    let items = (0..20).map(|chunk| new(chunk, chunk)).collect();
    let first = place.back_up(begin, items).await.unwrap();
    let items = (10..20).map(|chunk| new(chunk, chunk + 100)).collect();
    let second = place.back_up(after(&first, 200 * CHUNK), items).await.unwrap();
    delete(&place, &first).await;
    (Arc::new(place), second)
}

async fn check(place: &Place, parent: &v1::Generation, child: &v1::Generation) {
    let expected = |at: u64, replaced: bool| match at {
        0..10 => full_chunk(at),
        10..20 if replaced => full_chunk(at),
        10..20 => full_chunk(at + 100),
        _ => None,
    };
    for (generation, replaced) in [(parent, false), (child, true)] {
        let found = place.restore(generation).await.unwrap();
        let expected: Vec<_> = (0..200).map(|at| expected(at, replaced)).collect();
        assert!(found == expected);
    }
    let (damage, _) = place.verify(1.0).await;
    assert!(damage.is_empty(), "{damage:?}");
}

async fn begin(place: &Place, parent: &v1::Generation) -> Backup {
    place.begin(after(parent, 200 * CHUNK)).await.unwrap()
}

/// What the client does with what it is told: names what is present, sends what is not.
async fn send(backup: &mut Backup) {
    let missing = backup.missing((10..20).map(id).collect()).await.unwrap();
    let items =
        (10..20).zip(missing).map(|(at, missing)| if missing { new(at, at) } else { present(at, at) });
    backup.batch(items.collect()).await.unwrap();
}

#[tokio::test]
async fn a_backup_that_is_told_of_dying_chunks_at_any_step_is_whole() {
    for told in STEPS {
        for before in [true, false] {
            let (place, parent) = dying().await;
            let running = Arc::new(Mutex::new(None));
            if before {
                *running.lock().await = Some(begin(&place, &parent).await);
            }
            let act = {
                let (place, parent, running) = (Arc::clone(&place), parent.clone(), Arc::clone(&running));
                async move {
                    let mut running = running.lock().await;
                    if running.is_none() {
                        *running = Some(begin(&place, &parent).await);
                    }
                    send(running.as_mut().unwrap()).await;
                }
            };
            collect_and(&place, told, act.boxed()).await;
            // Another collection before the commit, which does not know what the first one kept.
            collect(&place, ALL).await.unwrap();
            let child = running.lock().await.take().unwrap().commit().await.unwrap();
            check(&place, &parent, &child).await;
            collect(&place, ALL).await.unwrap();
            check(&place, &parent, &child).await;
            collect(&place, ALL).await.unwrap();
            assert_eq!(stored(&place), needed(&place, &[parent, child]).await, "{told:?} {before}");
        }
    }
}

#[tokio::test]
async fn a_backup_that_commits_while_a_collection_runs_is_whole() {
    for commits in STEPS {
        let (place, parent) = dying().await;
        let mut backup = begin(&place, &parent).await;
        send(&mut backup).await;
        let done = Arc::new(Mutex::new(None));
        let act = {
            let done = Arc::clone(&done);
            async move { *done.lock().await = Some(backup.commit().await.unwrap()) }
        };
        collect_and(&place, commits, act.boxed()).await;
        let child = done.lock().await.take().unwrap();
        check(&place, &parent, &child).await;
        collect(&place, ALL).await.unwrap();
        check(&place, &parent, &child).await;
    }
}

#[tokio::test]
async fn what_a_backup_brought_that_never_commits_goes_with_a_later_collection() {
    let (place, parent) = dying().await;
    let mut backup = begin(&place, &parent).await;
    backup.batch(vec![new(50, 5000)]).await.unwrap();
    collect(&place, ALL).await.unwrap();
    assert!(stored(&place).contains(id(5000).as_bytes()));
    collect(&place, ALL).await.unwrap();
    assert!(stored(&place).contains(id(5000).as_bytes()));
    drop(backup);
    // The stream's end reaches the session by itself.
    while !place.repository.pins.roots().is_empty() {
        tokio::task::yield_now().await;
    }
    collect(&place, ALL).await.unwrap();
    assert_eq!(stored(&place), needed(&place, &[parent]).await);
}
