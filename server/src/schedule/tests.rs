use std::cell::{Cell, RefCell};

use jiff::{Timestamp, tz::TimeZone};

use super::*;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

fn when(text: &str) -> When {
    When::parse(text, Duration::from_secs(60)).unwrap()
}

fn ms(time: &str) -> u64 {
    u64::try_from(time.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
}

/// What runs in `span` from `start` on, with a clock that only sleeping moves.
async fn ran(jobs: Vec<(Job, When, u64)>, start: u64, span: u64) -> Vec<(Job, u64)> {
    let (now, ran) = (Cell::new(start), RefCell::new(Vec::new()));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stop = RefCell::new(Some(stop));
    let sleep = async |wait: Duration| {
        now.set(now.get() + u64::try_from(wait.as_millis()).unwrap());
        if now.get() > start + span {
            drop(stop.take());
            std::future::pending::<()>().await;
        }
    };
    let work = async |job| ran.borrow_mut().push((job, now.get() - start));
    let scheduler = Scheduler::new(jobs, TimeZone::UTC);
    tokio::select! {
        () = jobs::run(scheduler, || now.get(), sleep, work, async |_, _| ()) => unreachable!(),
        _ = stopped => {}
    }
    ran.into_inner()
}

#[tokio::test]
async fn jobs_run_when_they_are_due_and_in_their_order() {
    let start = ms("2026-11-24T00:00:00Z");
    let jobs = vec![(Job::Prune, when("30 3 * * *"), start), (Job::Verify, when("36h"), start)];
    let expected = [
        (Job::Prune, 3 * HOUR + HOUR / 2),
        (Job::Prune, DAY + 3 * HOUR + HOUR / 2),
        (Job::Verify, 36 * HOUR),
        (Job::Prune, 2 * DAY + 3 * HOUR + HOUR / 2),
        (Job::Verify, 72 * HOUR),
    ];
    assert_eq!(ran(jobs, start, 3 * DAY).await, expected);
}

#[tokio::test]
async fn what_was_due_while_the_server_was_down_is_done_once() {
    let start = ms("2026-11-24T12:00:00Z");
    let jobs =
        vec![(Job::Prune, when("0 3 * * *"), start - 9 * DAY), (Job::Collect, when("1d"), start - 3 * DAY)];
    let expected = [(Job::Prune, 0), (Job::Collect, 0), (Job::Prune, 15 * HOUR), (Job::Collect, DAY)];
    assert_eq!(ran(jobs, start, DAY).await, expected);
}

#[tokio::test]
async fn a_run_of_the_future_is_not_waited_for() {
    let start = ms("2026-11-24T12:00:00Z");
    let jobs = vec![(Job::Prune, when("1h"), start + 1000 * DAY)];
    let mut scheduler = Scheduler::new(jobs, TimeZone::UTC);
    scheduler.look(start);
    assert_eq!(scheduler.due(start + HOUR - 1), None);
    assert_eq!(scheduler.due(start + HOUR), Some(Job::Prune));
}
