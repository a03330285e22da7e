//! Generations that are held while they are read.

use thinbak_proto::{Failed, v1};
use tonic::Streaming;
use uuid::Uuid;

use super::{
    super::tree_of,
    client::{CHUNK, Place, after, full, latest, named, new, number},
};

async fn hold(
    place: &Place,
    selectors: Vec<v1::GenerationSelector>,
    ranges: Vec<(u64, u64)>,
) -> Result<(Vec<u64>, Streaming<v1::HoldEvent>), Failed> {
    let ranges = ranges.into_iter().map(|(first, last)| v1::GenerationRange { first, last }).collect();
    let request = v1::HoldRequest { volume: named("p/v"), selectors, ranges };
    let mut content = v1::content_client::ContentClient::new(place.routes());
    let mut events = content.hold(request).await?.into_inner();
    let held = events.message().await?.expect("an event").held;
    Ok((held.iter().map(|generation| generation.number).collect(), events))
}

/// Generations 1 to `count` of one volume, each with another chunk.
async fn volume(place: &Place, count: u64) -> Vec<v1::Generation> {
    let mut generations: Vec<v1::Generation> = Vec::new();
    for at in 0..count {
        let begin = match generations.last() {
            None => full(Uuid::new_v4(), "h/p/v", 200 * CHUNK),
            Some(parent) => after(parent, 200 * CHUNK),
        };
        generations.push(place.back_up(begin, vec![new(at, at + 1)]).await.unwrap());
    }
    generations
}

#[tokio::test]
async fn what_is_held_is_pinned_until_the_stream_is_dropped_although_it_is_deleted() {
    let place = Place::new().await;
    let generations = volume(&place, 3).await;
    let pins = &place.repository.pins;
    let (held, events) = hold(&place, vec![number(2).unwrap()], vec![]).await.unwrap();
    assert_eq!(held, [2]);
    let request = v1::DeleteGenerationRequest { volume: named("p/v"), selector: number(2) };
    place.generations().delete_generation(request).await.unwrap();
    assert_eq!(pins.roots(), [tree_of(&generations[1]).unwrap()]);
    assert_eq!(hold(&place, vec![number(2).unwrap()], vec![]).await.unwrap_err().exit_code(), 10);
    drop(events);
    assert_eq!(pins.roots(), []);
}

#[tokio::test]
async fn generations_named_twice_and_in_any_order_are_held_once_and_in_order() {
    let place = Place::new().await;
    volume(&place, 6).await;
    let (held, _events) =
        hold(&place, vec![latest().unwrap(), number(2).unwrap(), number(6).unwrap()], vec![(4, 5), (2, 3)])
            .await
            .unwrap();
    assert_eq!(held, [2, 3, 4, 5, 6]);
    assert_eq!(place.repository.pins.roots().len(), 5);
    let (all, _events) = hold(&place, vec![], vec![(0, u64::MAX)]).await.unwrap();
    assert_eq!(all, [1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn what_cannot_be_held_is_refused_and_leaves_no_pin() {
    let place = Place::new().await;
    volume(&place, 2).await;
    let one = || number(1).unwrap();
    let empty = v1::GenerationSelector { which: None };
    let cases = [
        (vec![], vec![], 2),
        (vec![one(), empty], vec![], 2),
        (vec![one(); 1025], vec![], 2),
        (vec![], vec![(1, 2); 1025], 2),
        (vec![one(), number(3).unwrap()], vec![], 10),
        (vec![one()], vec![(3, u64::MAX)], 10),
        (vec![one()], vec![(2, 1)], 10),
    ];
    for (selectors, ranges, code) in cases {
        let failed = hold(&place, selectors, ranges).await.unwrap_err();
        assert_eq!(failed.exit_code(), code, "{failed}");
        assert_eq!(place.repository.pins.roots(), []);
    }
}

#[tokio::test]
async fn as_many_clients_as_there_are_places_hold_generations() {
    let place = Place::new().await;
    volume(&place, 1).await;
    let mut holds = Vec::new();
    let refused = loop {
        match hold(&place, vec![latest().unwrap()], vec![]).await {
            Ok((_, events)) => holds.push(events),
            Err(failed) => break failed,
        }
    };
    assert_eq!((holds.len(), refused.exit_code()), (256, 11));
    holds.pop();
    hold(&place, vec![latest().unwrap()], vec![]).await.unwrap();
}

#[tokio::test]
async fn a_hold_ends_when_the_server_stops() {
    let place = Place::new().await;
    volume(&place, 1).await;
    let (_, mut events) = hold(&place, vec![latest().unwrap()], vec![]).await.unwrap();
    place.repository.close().await;
    let end = Failed::from(events.message().await.unwrap_err());
    assert_eq!(end.exit_code(), 11);
    assert_eq!(place.repository.pins.roots(), []);
}
