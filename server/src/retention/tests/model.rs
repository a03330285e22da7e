//! The planner against a model that asks of every generation and every rule anew. It has its own calendar,
//! counts in days since 1970, and knows no order but the one that it compares by.

use jiff::tz::{self, TimeZone};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use thinbak_proto::v1::RetentionPolicy;

use super::plans::{ms, policy};
use crate::retention::plan::{Candidate, plan};

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

/// The year and month of a day since 1970, found by counting.
fn year_and_month(mut day: i64) -> (i64, i64) {
    for year in 1970.. {
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let february = if leap { 29 } else { 28 };
        for (length, month) in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31].into_iter().zip(1..) {
            if day < length {
                return (year, month);
            }
            day -= length;
        }
    }
    unreachable!()
}

/// Hour, day, week, month and year of a moment, as numbers.
fn periods(created_at_ms: u64, offset_ms: i64) -> [i64; 5] {
    let local = i64::try_from(created_at_ms).unwrap() + offset_ms;
    let day = local.div_euclid(DAY);
    let (year, month) = year_and_month(day);
    // 1970 began on a Thursday.
    [local.div_euclid(HOUR), day, (day + 3).div_euclid(7), year * 12 + month, year]
}

fn kept(rules: &RetentionPolicy, all: &[Candidate], which: &Candidate, now_ms: u64, offset_ms: i64) -> bool {
    if which.protected || which.created_at_ms > now_ms || all.iter().all(|other| other.number <= which.number)
    {
        return true;
    }
    let age = |candidate: &Candidate| (candidate.created_at_ms, candidate.number);
    let newer: Vec<&Candidate> =
        all.iter().filter(|other| other.created_at_ms <= now_ms && age(other) > age(which)).collect();
    if newer.len() < rules.last as usize {
        return true;
    }
    let newest = newer.iter().map(|other| other.created_at_ms).max().unwrap_or(which.created_at_ms);
    if rules.within_seconds > 0 && newest - which.created_at_ms <= rules.within_seconds * 1000 {
        return true;
    }
    let counts = [rules.hourly, rules.daily, rules.weekly, rules.monthly, rules.yearly];
    (0..5).any(|period| {
        let mine = periods(which.created_at_ms, offset_ms)[period];
        let mut others: Vec<i64> =
            newer.iter().map(|other| periods(other.created_at_ms, offset_ms)[period]).collect();
        others.sort_unstable();
        others.dedup();
        !others.contains(&mine) && others.len() < counts[period] as usize
    })
}

#[test]
fn plans_agree_with_a_naive_model() {
    let seed = std::env::var("THINBAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("THINBAK_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (mut removed, mut planned) = (0, 0);
    for round in 0..300 {
        let hours = random.random_range(-12..=14);
        let zone = TimeZone::fixed(tz::offset(hours));
        let now_ms = ms("2026-11-24T12:00:00Z") + random.random_range(0..1_000_000_000);
        // Minutes to years apart, with a few of one moment and a few of the future.
        let span = [3_600_000, 86_400_000, 30 * 86_400_000, 3000 * 86_400_000][random.random_range(0..4)];
        let all: Vec<Candidate> = (1..=random.random_range(0..60))
            .map(|number| Candidate {
                number,
                created_at_ms: match random.random_range(0..20) {
                    0 => now_ms + random.random_range(0..2),
                    1 => now_ms + random.random_range(0..span),
                    _ => now_ms - random.random_range(0..span) / 1000 * 1000,
                },
                protected: random.random_range(0..15) == 0,
                group: None,
            })
            .collect();
        let count = |random: &mut StdRng| if random.random() { 0 } else { random.random_range(0..8) };
        let rules = RetentionPolicy {
            last: count(&mut random).max(1),
            hourly: count(&mut random),
            daily: count(&mut random),
            weekly: count(&mut random),
            monthly: count(&mut random),
            yearly: count(&mut random),
            within_seconds: if random.random() { 0 } else { random.random_range(0..span / 1000) },
        };
        let decisions = plan(&policy(rules), all.clone(), now_ms, &zone);
        assert_eq!(decisions.len(), all.len());
        for (decision, candidate) in decisions.iter().zip(&all) {
            assert_eq!(decision.candidate, *candidate, "round {round}: in the order of numbers");
            let expected = kept(&rules, &all, candidate, now_ms, i64::from(hours) * HOUR);
            assert_eq!(!decision.removes(), expected, "round {round}: {decision:?} by {rules:?}");
            removed += usize::from(decision.removes());
        }
        planned += all.len();
    }
    assert!(removed > planned / 10 && removed < planned * 9 / 10, "{removed} of {planned} removed");
}
