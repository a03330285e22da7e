use jiff::{
    Timestamp,
    tz::{TimeZone, offset},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{cron::Cron, *};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

fn ms(time: &str) -> u64 {
    u64::try_from(time.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
}

#[test]
fn what_is_no_schedule_is_refused() {
    for text in [
        "",
        "daily",
        "59s",
        "24:00",
        "2:3",
        "02:60",
        "02:30:00",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
    ] {
        assert!(When::parse(text, MINUTE).is_err(), "{text}");
    }
    for text in
        ["* * * 13 *", "* * * * 8", "5-1 * * * *", "*/0 * * * *", "1, * * * *", "a * * * *", "0 0 31 2 *"]
    {
        assert!(When::parse(text, MINUTE).is_err(), "{text}");
    }
}

#[test]
fn a_time_of_day_is_that_moment_of_every_day() {
    let zone = TimeZone::get("Europe/Berlin").unwrap();
    let when = When::parse("02:30", MINUTE).unwrap();
    assert_eq!(when, When::parse("30 2 * * *", MINUTE).unwrap());
    let next = when.next(ms("2026-11-24T12:00:00Z"), &zone).unwrap();
    assert_eq!(next, ms("2026-11-25T01:30:00Z"));
    assert_eq!(when.next(u64::MAX, &zone), None);
}

#[test]
fn a_length_of_time_goes_on_from_where_it_was() {
    let when = When::parse("90s", MINUTE).unwrap();
    assert_eq!(when.next(1, &TimeZone::UTC), Some(90_001));
    assert_eq!(When::parse("1s", Duration::from_secs(1)).unwrap().next(0, &TimeZone::UTC), Some(1000));
    assert!(When::parse("0s", Duration::ZERO).is_err());
}

#[test]
fn a_moment_that_clocks_leave_out_comes_later_and_one_that_comes_twice_is_taken_once() {
    let berlin = TimeZone::get("Europe/Berlin").unwrap();
    let cron: Cron = "30 2 * * *".parse().unwrap();
    let next = |after: &str| cron.next(after.parse().unwrap(), &berlin).unwrap().to_string();
    assert_eq!(next("2026-03-28T12:00:00Z"), "2026-03-29T01:30:00Z");
    assert_eq!(next("2026-03-29T01:30:00Z"), "2026-03-30T00:30:00Z");
    assert_eq!(next("2026-10-24T12:00:00Z"), "2026-10-25T00:30:00Z");
    assert_eq!(next("2026-10-25T00:30:00Z"), "2026-10-26T01:30:00Z");
}

/// Minute after minute is asked whether it fits, by fields that are plain lists.
#[test]
fn cron_agrees_with_a_naive_model() {
    let seed = std::env::var("THINBAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("THINBAK_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let hours = random.random_range(-12..=14);
    let zone = TimeZone::fixed(offset(hours));
    for _ in 0..100 {
        // Numbers that are drawn go up to `most`, so that every month has such a day; `*` is all there are.
        let mut field = |least: i8, most: i8, all: i8| -> (String, Vec<i8>) {
            let (one, two) = (random.random_range(least..=most), random.random_range(least..=most));
            let (low, high) = (one.min(two), one.max(two));
            match random.random_range(0..5) {
                0 => (format!("{low}-{high}"), (low..=high).collect()),
                1 => (format!("{one},{two}"), vec![one, two]),
                2 => (format!("*/{}", high.max(1)), (least..=all).step_by(high.max(1) as usize).collect()),
                _ => ("*".to_owned(), (least..=all).collect()),
            }
        };
        let fields = [field(0, 59, 59), field(0, 23, 23), field(1, 28, 31), field(1, 12, 12), field(0, 7, 7)];
        let text = fields.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>().join(" ");
        let cron: Cron = text.parse().unwrap();
        let start = ms("2026-11-24T12:00:00Z") + random.random_range(0..400 * DAY);
        let found = cron.next(Timestamp::from_millisecond(start as i64).unwrap(), &zone).unwrap();
        let found = u64::try_from(found.as_millisecond()).unwrap();
        let fits = |moment: u64| {
            let local = Timestamp::from_millisecond(moment as i64).unwrap().to_zoned_datetime(zone.clone());
            let weekday = (moment as i64 + i64::from(hours) * HOUR as i64).div_euclid(DAY as i64) + 4;
            let weekday = (weekday.rem_euclid(7)) as i8;
            let [minute, hour, day, month, weekdays] = &fields;
            let of_month = day.1.contains(&local.day());
            let of_week = weekdays.1.contains(&weekday) || (weekday == 0 && weekdays.1.contains(&7));
            let days = match day.0.starts_with('*') || weekdays.0.starts_with('*') {
                true => of_month && of_week,
                false => of_month || of_week,
            };
            minute.1.contains(&local.minute())
                && hour.1.contains(&local.hour())
                && month.1.contains(&local.month())
                && days
        };
        assert!(found > start && found % 60_000 == 0 && fits(found), "{text} after {start} is not {found}");
        let minutes = (start / 60_000 + 1..found / 60_000).take(60 * 24 * 40);
        for minute in minutes {
            assert!(!fits(minute * 60_000), "{text} after {start} left out {}", minute * 60_000);
        }
    }
}
