use jiff::tz::TimeZone;
use thinbak_proto::v1;

use crate::retention::{
    plan::{Candidate, Decision, plan},
    policy::{KeepsNothing, Policy},
};

const NOW: &str = "2026-11-24T12:00:00Z";

pub(super) fn ms(time: &str) -> u64 {
    u64::try_from(time.parse::<jiff::Timestamp>().unwrap().as_millisecond()).unwrap()
}

pub(super) fn policy(policy: v1::RetentionPolicy) -> Policy {
    Policy::new(&policy).unwrap()
}

fn made_at(times: &[&str]) -> Vec<Candidate> {
    let made = |(time, number): (&&str, u64)| Candidate {
        number,
        created_at_ms: ms(time),
        protected: false,
        group: None,
    };
    times.iter().zip(1..).map(made).collect()
}

/// A line a generation: its number and its reasons.
fn lines(decisions: &[Decision]) -> Vec<String> {
    let line = |decision: &Decision| {
        let reasons: Vec<_> = decision.reasons.iter().map(ToString::to_string).collect();
        format!("{} {}", decision.candidate.number, reasons.join(", "))
    };
    decisions.iter().map(line).collect()
}

fn planned(rules: v1::RetentionPolicy, candidates: Vec<Candidate>, zone: &str) -> Vec<String> {
    let zone = if zone == "UTC" { TimeZone::UTC } else { TimeZone::get(zone).unwrap() };
    lines(&plan(&policy(rules), candidates, ms(NOW), &zone))
}

#[test]
fn the_newest_of_each_period_is_kept_and_one_can_serve_several_rules() {
    let made = made_at(&[
        "2024-05-05T05:00:00Z",
        "2025-12-31T23:00:00Z",
        "2026-11-15T23:59:59.999Z",
        "2026-11-16T00:00:00Z",
        "2026-11-23T08:00:00Z",
        "2026-11-23T09:00:00Z",
        "2026-11-24T09:10:00Z",
        "2026-11-24T09:20:00Z",
    ]);
    let rules =
        v1::RetentionPolicy { last: 1, hourly: 2, daily: 3, weekly: 2, yearly: 5, ..Default::default() };
    assert_eq!(
        planned(rules, made, "UTC"),
        [
            "1 yearly 2024",
            "2 yearly 2025",
            "3 ",
            "4 daily 2026-11-16, weekly 2026-W47",
            "5 ",
            "6 hourly 2026-11-23T09+00:00, daily 2026-11-23",
            "7 ",
            "8 newest, last 1, hourly 2026-11-24T09+00:00, daily 2026-11-24, weekly 2026-W48, yearly 2026",
        ]
    );
}

#[test]
fn a_generation_of_the_future_stays_and_pushes_nothing_out() {
    let made = made_at(&[
        "2026-11-22T12:00:00Z",
        "2036-01-01T00:00:00Z",
        "2026-11-23T12:00:00Z",
        "2026-11-24T11:00:00Z",
        "2026-11-24T12:00:00.001Z",
    ]);
    let rules = v1::RetentionPolicy { last: 1, within_seconds: 86_400, ..Default::default() };
    assert_eq!(
        planned(rules, made, "UTC"),
        [
            "1 ",
            "2 dated in the future",
            "3 within 1d",
            "4 last 1, within 1d",
            "5 newest, dated in the future"
        ]
    );
}

#[test]
fn within_counts_from_the_newest_backup_so_that_history_does_not_melt_when_backups_stop() {
    let made = made_at(&["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"]);
    let rules = v1::RetentionPolicy { within_seconds: 86_400, ..Default::default() };
    assert_eq!(planned(rules, made, "UTC"), ["1 ", "2 within 1d", "3 newest, within 1d"]);
}

#[test]
fn protected_generations_stay_and_take_their_places() {
    let mut made = made_at(&["2026-11-20T00:00:00Z", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z"]);
    made[0].protected = true;
    let rules = v1::RetentionPolicy { last: 1, ..Default::default() };
    assert_eq!(planned(rules, made, "UTC"), ["1 protected", "2 ", "3 newest, last 1"]);
}

#[test]
fn days_are_those_of_the_zone_and_an_hour_that_comes_twice_is_two() {
    let made = made_at(&["2026-11-22T22:30:00Z", "2026-11-22T23:30:00Z", "2026-11-23T22:30:00Z"]);
    let rules = v1::RetentionPolicy { daily: 9, ..Default::default() };
    assert_eq!(
        planned(rules, made.clone(), "UTC"),
        ["1 ", "2 daily 2026-11-22", "3 newest, daily 2026-11-23"]
    );
    assert_eq!(
        planned(rules, made, "Europe/Berlin"),
        ["1 daily 2026-11-22", "2 ", "3 newest, daily 2026-11-23"]
    );
    let twice = made_at(&["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"]);
    let rules = v1::RetentionPolicy { hourly: 2, ..Default::default() };
    assert_eq!(
        planned(rules, twice, "Europe/Berlin"),
        ["1 hourly 2026-10-25T02+02:00", "2 newest, hourly 2026-10-25T02+01:00"]
    );
}

#[test]
fn a_policy_that_keeps_nothing_is_none() {
    assert_eq!(Policy::new(&v1::RetentionPolicy::default()), Err(KeepsNothing));
}

#[test]
fn no_generation_and_no_sensible_date_are_no_trouble() {
    let rules = v1::RetentionPolicy { last: 1, yearly: 3, within_seconds: u64::MAX, ..Default::default() };
    assert_eq!(planned(rules, Vec::new(), "UTC"), [""; 0]);
    let mut made = made_at(&["1970-01-01T00:00:00Z", "2026-11-22T00:00:00Z"]);
    made[1].created_at_ms = u64::MAX;
    let decisions = plan(&policy(rules), made, u64::MAX, &TimeZone::UTC);
    assert!(lines(&decisions)[1].contains("yearly 9999"), "{decisions:?}");
}
