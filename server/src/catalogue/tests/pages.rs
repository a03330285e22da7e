//! Lists in pages, and what SQLite does for them.

use super::super::{deletion, listing};
use super::*;

/// All pages of a list, as names and numbers, from pages of three.
async fn listed(catalogue: &Catalogue, filter: Filter) -> Vec<(String, u64)> {
    let (mut after, mut found) = (Position::default(), Vec::new());
    loop {
        let page = catalogue.page(filter, &after, 3).await.unwrap();
        let Some(last) = page.last() else { return found };
        assert!(page.len() <= 3);
        let last = last.entry.generation.clone();
        after = Position { volume_name: last.volume_name, number: last.number };
        found.extend(
            page.into_iter().map(|one| (one.entry.generation.volume_name, one.entry.generation.number)),
        );
    }
}

fn numbers(name: &str, numbers: impl IntoIterator<Item = u64>) -> Vec<(String, u64)> {
    numbers.into_iter().map(|number| (name.to_owned(), number)).collect()
}

#[tokio::test]
async fn pages_together_are_the_list() {
    let (_dir, catalogue) = catalogue().await;
    let (one, two, three) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    // In another order than that of the names.
    for (volume, name, count) in [(two, "h/p/b", 2), (one, "h/p/a", 10), (three, "h/p/c", 4)] {
        for number in 1..=count {
            catalogue.add_generation(&generation(volume, name, number), MANIFEST, false).await.unwrap();
        }
    }
    delete(&catalogue, one, &[1, 2, 5], 100).await;
    delete(&catalogue, three, &[1], 200).await;
    let all = Filter::default();
    let alive =
        [numbers("h/p/a", [3, 4, 6, 7, 8, 9, 10]), numbers("h/p/b", [1, 2]), numbers("h/p/c", [2, 3, 4])];
    assert_eq!(listed(&catalogue, all).await, alive.concat());
    let of_one = Filter { volume: Some(one), ..all };
    assert_eq!(listed(&catalogue, of_one).await, alive[0]);
    let newest = [numbers("h/p/a", [8, 9, 10]), numbers("h/p/b", [1, 2]), numbers("h/p/c", [2, 3, 4])];
    assert_eq!(listed(&catalogue, Filter { newest: 3, ..all }).await, newest.concat());
    assert_eq!(listed(&catalogue, Filter { newest: 1, ..of_one }).await, numbers("h/p/a", [10]));
    let deleted = |after| Filter { deleted_after_ms: Some(after), ..all };
    let gone = [numbers("h/p/a", [1, 2, 5]), numbers("h/p/c", [1])];
    assert_eq!(listed(&catalogue, deleted(99)).await, gone.concat());
    assert_eq!(listed(&catalogue, deleted(100)).await, gone[1]);
    assert_eq!(
        listed(&catalogue, Filter { newest: 1, ..deleted(0) }).await,
        [("h/p/a".into(), 5), ("h/p/c".into(), 1)]
    );
}

#[tokio::test]
async fn volumes_come_in_pages_by_name_with_their_newest_generation() {
    let (_dir, catalogue) = catalogue().await;
    let volumes: Vec<Uuid> = (0..5).map(|_| Uuid::new_v4()).collect();
    for (place, volume) in volumes.iter().enumerate().rev() {
        for number in 1..=place as u64 + 2 {
            let name = format!("h/p/{place}");
            catalogue.add_generation(&generation(*volume, &name, number), MANIFEST, false).await.unwrap();
        }
    }
    delete(&catalogue, volumes[3], &[2, 4], 100).await;
    delete(&catalogue, volumes[1], &[1, 2], 100).await;
    let (mut after, mut found) = (String::new(), Vec::new());
    loop {
        let page = catalogue.volumes(&after, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 2);
        after = last.name.clone();
        found.extend(page.into_iter().map(|one| (one.name, one.generations, one.latest_generation)));
    }
    let expected = [("h/p/0", 2, 2), ("h/p/1", 1, 3), ("h/p/2", 4, 4), ("h/p/3", 3, 5), ("h/p/4", 6, 6)];
    assert_eq!(found, expected.map(|(name, count, latest)| (name.to_owned(), count, latest)));
}

/// What SQLite says that it does for a statement.
async fn explained(catalogue: &Catalogue, statement: &str) -> String {
    let statement = format!("EXPLAIN QUERY PLAN {statement}");
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement)).fetch_all(&catalogue.pool).await.unwrap();
    rows.iter().map(|row| row.get::<String, _>("detail") + "\n").collect()
}

/// A list of which each page reads its own rows only: no sorting, no table read from its beginning.
#[tokio::test]
async fn no_page_reads_more_than_its_rows() {
    let (_dir, catalogue) = catalogue().await;
    let all = Filter::default();
    let mut statements =
        vec![deletion::root_statement(deletion::ALIVE), deletion::root_statement(deletion::EXPIRED)];
    for filter in [all, Filter { newest: 5, ..all }, Filter { deleted_after_ms: Some(0), ..all }] {
        for place in [listing::IN_VOLUME, listing::IN_LATER, listing::IN_ONE] {
            statements.push(filter.statement(place));
        }
    }
    statements.push(listing::VOLUMES.to_owned());
    statements
        .extend([Selector::Number(1), Selector::Latest, Selector::AtOrBefore(1)].map(Selector::statement));
    for statement in statements {
        let plan = explained(&catalogue, &statement).await;
        assert!(!plan.contains("TEMP B-TREE") && !plan.contains("SCAN"), "{statement}:\n{plan}");
    }
}

#[tokio::test]
async fn a_generation_is_found_by_its_number_alone() {
    let (_dir, catalogue) = catalogue().await;
    let plan = explained(&catalogue, &Selector::Number(1).statement()).await;
    assert!(plan.contains("volume_uuid=? AND number=?"), "{plan}");
}

#[tokio::test]
async fn counts_and_sums_come_from_the_index_alone() {
    let (_dir, catalogue) = catalogue().await;
    let plan = explained(&catalogue, super::super::TOTALS).await;
    let scans: Vec<_> = plan.lines().filter(|line| line.contains("SCAN g")).collect();
    assert!(scans.iter().all(|line| line.contains("COVERING INDEX generations_alive")), "{plan}");
    assert_eq!(scans.len(), 1, "{plan}");
    let plan = explained(&catalogue, listing::VOLUMES).await;
    let counted: Vec<_> = plan.lines().filter(|line| line.contains("SEARCH c")).collect();
    assert!(counted.iter().all(|line| line.contains("COVERING INDEX generations_alive")), "{plan}");
    assert_eq!(counted.len(), 1, "{plan}");
}
