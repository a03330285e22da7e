//! The scheduler against clocks that are set, crashes and reloads.

use std::{collections::BTreeMap, time::Duration};

use jiff::{Timestamp, tz::TimeZone};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use thinbak_proto::When;

use super::scheduler::{Due, Plan, Scheduler, Timing, Went, again};
use crate::config::Retry;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

fn timing(name: &str, text: &str, jitter_ms: u64) -> Timing {
    let when = When::parse(text, Duration::from_secs(1)).unwrap();
    Timing { name: name.to_owned(), text: text.to_owned(), when, jitter_ms }
}

fn ms(time: &str) -> u64 {
    u64::try_from(time.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
}

fn scheduler(timing: Timing, plan: Option<Plan>, now: u64) -> Scheduler {
    Scheduler::new([(timing, plan)], TimeZone::UTC, 1, now)
}

fn run(scheduler: &mut Scheduler, now: u64) -> bool {
    scheduler.look(now);
    let Some(due) = scheduler.due(now) else { return false };
    scheduler.begin(&due, now).unwrap();
    scheduler.ended(&due.name, None);
    true
}

#[test]
fn a_new_job_is_due_at_once_or_at_its_next_moment() {
    let noon = ms("2026-11-24T12:00:00Z");
    let every = scheduler(timing("j", "1h", 0), None, noon);
    assert!(every.due(noon).is_some());
    let daily = scheduler(timing("j", "02:30", 10 * MINUTE), None, noon);
    assert_eq!(daily.next("j"), Some(ms("2026-11-25T02:40:00Z")), "ten minutes late");
    let late = scheduler(timing("j", "1h", 10 * MINUTE), None, noon);
    assert_eq!(late.next("j"), Some(noon + 10 * MINUTE));
}

#[test]
fn what_was_missed_is_made_up_for_once_and_another_schedule_begins_anew() {
    let noon = ms("2026-11-24T12:00:00Z");
    let plan = Plan { schedule: "02:30".to_owned(), counted_from_ms: noon - 5 * DAY, retry: None };
    let mut daily = scheduler(timing("j", "02:30", 0), Some(plan.clone()), noon);
    assert!(run(&mut daily, noon));
    assert!(!run(&mut daily, noon + HOUR));
    assert_eq!(daily.next("j"), Some(ms("2026-11-25T02:30:00Z")));
    let other = scheduler(timing("j", "03:30", 0), Some(plan), noon);
    assert_eq!(other.next("j"), Some(ms("2026-11-25T03:30:00Z")));
}

#[test]
fn while_as_many_run_as_may_nothing_is_due_and_nothing_is_waited_for() {
    let start = ms("2026-11-24T12:00:00Z");
    let jobs = [timing("a", "1h", 0), timing("b", "1h", 0)].map(|timing| (timing, None));
    let mut two = Scheduler::new(jobs, TimeZone::UTC, 1, start);
    let due = two.due(start).unwrap();
    let before = two.plan(&due.name).cloned();
    two.begin(&due, start).unwrap();
    assert_eq!((two.due(start), two.wait(start)), (None, None));
    // It could not begin after all: the other goes first, and this one has its turn after its pause.
    two.postpone(&due.name, before, start, Duration::from_secs(5));
    let other = two.due(start).unwrap();
    assert_ne!(other.name, due.name);
    two.begin(&other, start).unwrap();
    two.ended(&other.name, None);
    assert_eq!(two.wait(start), Some(Duration::from_secs(5)));
    assert_eq!(two.due(start + 5 * SECOND), Some(due));
}

#[test]
fn a_clock_put_back_does_not_repeat_a_run_nor_keep_a_job_waiting_for_long() {
    let half_past = ms("2026-11-24T02:30:00Z");
    let mut daily = scheduler(timing("j", "02:30", 0), None, half_past - HOUR);
    assert!(run(&mut daily, half_past));
    // A quarter of an hour back: the moment comes again, and is counted already.
    assert!(!run(&mut daily, half_past - 15 * MINUTE));
    assert!(!run(&mut daily, half_past + MINUTE));
    assert_eq!(daily.next("j"), Some(half_past + DAY));
    // A year forward, one run, and back again.
    assert!(run(&mut daily, half_past + 365 * DAY));
    assert!(!run(&mut daily, half_past + HOUR));
    assert_eq!(daily.next("j"), Some(half_past + DAY));
}

#[test]
fn jitter_follows_from_the_names_and_is_within_its_bounds() {
    let text = "[[job]]\nname = \"a\"\nvolumes = [\"p/*\"]\nschedule = \"02:30\"\njitter = \"20min\"\n";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, text).unwrap();
    let around = crate::config::Surroundings { variable: &|_| None, root: true, directory: "/".into() };
    let settings = crate::config::Settings::resolve(Default::default(), Some(&path), &around).unwrap();
    let job = &settings.jobs.jobs[0];
    let late = |host: &str| Timing::of(job, host).unwrap().jitter_ms;
    assert_eq!(late("one"), late("one"));
    let all: std::collections::BTreeSet<u64> = (0..50).map(|host| late(&host.to_string())).collect();
    assert!(all.len() > 40 && all.iter().all(|late| *late <= 20 * MINUTE), "{all:?}");
}

#[test]
fn repetitions_wait_longer_each_time_and_come_to_an_end() {
    let retry = Retry { count: 3, first: Duration::from_secs(60), max: Duration::from_secs(150) };
    let waits: Vec<_> = (1..5).map(|attempt| again(retry, attempt, Went::Badly, 0, Vec::new())).collect();
    let waits: Vec<_> =
        waits.into_iter().map(|again| again.map(|again| (again.attempt, again.at_ms))).collect();
    assert_eq!(waits, [Some((2, 60_000)), Some((3, 120_000)), Some((4, 150_000)), None]);
    assert_eq!(again(retry, 1, Went::Well, 0, Vec::new()), None);
    // What was broken off is done again at once, even without repetitions, but not for ever.
    let none = Retry { count: 0, ..retry };
    assert_eq!(again(none, 1, Went::BrokenOff, 7, Vec::new()).map(|again| again.at_ms), Some(7));
    assert_eq!(again(none, 2, Went::BrokenOff, 7, Vec::new()), None);
    assert_eq!(again(none, 1, Went::Badly, 7, Vec::new()), None);
}

#[test]
fn a_moment_of_the_schedule_goes_before_a_repetition_for_some_volumes() {
    let start = ms("2026-11-24T12:00:00Z");
    let mut hourly = scheduler(timing("j", "1h", 0), None, start);
    let due = hourly.due(start).unwrap();
    hourly.begin(&due, start).unwrap();
    let retry = Retry { count: 3, first: Duration::from_secs(600), max: Duration::from_secs(600) };
    hourly.ended("j", again(retry, 1, Went::Badly, start, vec!["u".to_owned()]));
    assert_eq!(hourly.due(start + 599 * SECOND), None);
    let due = hourly.due(start + 600 * SECOND).unwrap();
    assert_eq!(due, Due { name: "j".to_owned(), attempt: 2, volumes: vec!["u".to_owned()] });
    assert_eq!(hourly.due(start + HOUR).unwrap().attempt, 1);
    // Put back by a day, the clock keeps it waiting for no longer than its pause.
    hourly.look_at_retries(start - DAY, |_| Duration::from_secs(600));
    assert!(hourly.next("j").unwrap() <= start - DAY + 600 * SECOND);
}

/// A job in the simulation, and what is known of it beside the scheduler.
struct Simulated {
    timing: Timing,
    retry: Retry,
    /// The longest time between two moments of its schedule.
    period: u64,
    disk: Option<Plan>,
    /// Attempt and real end of the run under way.
    running: Option<(u32, u64)>,
    /// The moment that the last regular run was for, and its beginning on the job's own clock.
    last: Option<(u64, u64)>,
    /// The clock was put back so far that the moment may come again.
    forgotten: bool,
    /// Real time without a run while the agent was up, and how much of that set clocks may account for.
    waited: u64,
    excused: u64,
}

struct World {
    random: StdRng,
    real: u64,
    ahead: i64,
    jobs: BTreeMap<String, Simulated>,
    scheduler: Scheduler,
}

const MAX_RUNNING: usize = 2;
const MAX_TICK: u64 = 40 * MINUTE;
const MAX_RUN: u64 = 20 * MINUTE;

impl World {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let schedules =
            [("10min", 10 * MINUTE), ("7h", 7 * HOUR), ("02:30", DAY), ("*/15 * * * *", 15 * MINUTE)];
        let jobs = schedules.into_iter().enumerate().map(|(number, (text, period))| {
            let name = format!("job{number}");
            let timing = timing(&name, text, random.random_range(0..10 * MINUTE));
            let count = random.random_range(0..3);
            let retry = Retry { count, first: Duration::from_secs(60), max: Duration::from_secs(600) };
            let (disk, running, last) = (None, None, None);
            let job = Simulated {
                timing,
                retry,
                period,
                disk,
                running,
                last,
                forgotten: false,
                waited: 0,
                excused: 0,
            };
            (name, job)
        });
        let jobs = jobs.collect();
        let mut world = Self {
            random,
            real: ms("2026-11-24T12:00:00Z"),
            ahead: 0,
            jobs,
            scheduler: scheduler(timing("x", "1h", 0), None, 0),
        };
        world.start();
        world
    }

    fn wall(&self) -> u64 {
        self.real.saturating_add_signed(self.ahead)
    }

    /// A process begins: runs that did not end are settled, the rest is read from the disk.
    fn start(&mut self) {
        let now = self.wall();
        for job in self.jobs.values_mut() {
            if let (Some((attempt, _)), Some(plan)) = (job.running.take(), &mut job.disk) {
                plan.retry = again(job.retry, attempt, Went::BrokenOff, now, Vec::new());
            }
        }
        let jobs = self.jobs.values().map(|job| (job.timing.clone(), job.disk.clone()));
        self.scheduler = Scheduler::new(jobs.collect::<Vec<_>>(), TimeZone::UTC, MAX_RUNNING, now);
        for (name, plan) in self.scheduler.plans() {
            self.jobs.get_mut(name).unwrap().disk = Some(plan.clone());
        }
    }

    fn tick(&mut self) {
        let step = self.random.random_range(SECOND..MAX_TICK);
        self.real += step;
        for job in self.jobs.values_mut() {
            job.waited += step;
        }
        let (real, now) = (self.real, self.wall());
        for (name, job) in &mut self.jobs {
            if let Some((attempt, _)) = job.running.take_if(|(_, end)| *end <= real) {
                let went = if self.random.random_range(0..4) == 0 { Went::Badly } else { Went::Well };
                let follows = again(job.retry, attempt, went, now, Vec::new());
                job.disk.as_mut().unwrap().retry = follows.clone();
                self.scheduler.ended(name, follows);
            }
        }
        self.scheduler.look(now);
        self.scheduler.look_at_retries(now, |_| Duration::from_secs(600));
        while let Some(due) = self.scheduler.due(now) {
            self.begin(&due, now);
        }
        for (name, job) in &self.jobs {
            let bound =
                2 * job.period + job.excused + MAX_TICK + 2 * (MAX_RUN + MAX_TICK) * self.jobs.len() as u64;
            assert!(job.waited <= bound, "{name} waits for {} ms, more than {bound}", job.waited);
        }
    }

    fn begin(&mut self, due: &Due, now: u64) {
        let plan = self.scheduler.begin(due, now).unwrap();
        let end = self.real + self.random.random_range(0..MAX_RUN);
        let job = self.jobs.get_mut(&due.name).unwrap();
        assert!(job.running.is_none(), "{} runs twice at a time", due.name);
        assert!(due.attempt <= job.retry.count.max(1) + 1, "attempt {} of {}", due.attempt, due.name);
        (job.running, job.disk) = (Some((due.attempt, end)), Some(plan));
        if due.attempt == 1 {
            let own = now.saturating_sub(job.timing.jitter_ms);
            let moment = moment_before(&job.timing, job.period, own);
            if let Some((last, began)) = job.last.filter(|_| !job.forgotten) {
                let grown = match job.timing.when.every() {
                    Some(every) => own >= began + u64::try_from(every.as_millis()).unwrap(),
                    None => moment > last,
                };
                assert!(grown, "{} ran twice for {last}: at {began} and {own}", due.name);
            }
            (job.last, job.forgotten) = (Some((moment, own)), false);
            (job.waited, job.excused) = (0, 0);
        }
        let running = self.jobs.values().filter(|job| job.running.is_some()).count();
        assert!(running <= MAX_RUNNING, "{running} run at a time");
    }

    /// The clock is set.
    fn jump(&mut self) {
        let most = *[MINUTE, HOUR, 3 * DAY].get(self.random.random_range(0..3)).unwrap() as i64;
        self.ahead += self.random.random_range(-most..most);
        let now = self.wall();
        for job in self.jobs.values_mut() {
            // It waits for what is counted already, or is counted from now.
            job.excused += job.period;
            let own = now.saturating_sub(job.timing.jitter_ms);
            job.forgotten |= job.last.is_some_and(|(_, began)| own < began.saturating_sub(job.period));
        }
    }

    fn crash(&mut self) {
        let down = self.random.random_range(0..2 * DAY);
        self.real += down;
        self.start();
        for job in self.jobs.values_mut() {
            job.excused += MAX_TICK;
        }
    }

    fn reload(&mut self) {
        let jobs: Vec<_> = self.jobs.values().map(|job| job.timing.clone()).collect();
        self.scheduler = self.scheduler.reloaded(jobs, TimeZone::UTC, MAX_RUNNING, self.wall());
    }
}

/// The last moment of a schedule that is not after `own`; of one that runs every so often, when it began.
fn moment_before(timing: &Timing, period: u64, own: u64) -> u64 {
    if timing.when.every().is_some() {
        return own;
    }
    let mut moment = own.saturating_sub(2 * period);
    while let Some(next) = timing.when.next(moment, &TimeZone::UTC).filter(|next| *next <= own) {
        moment = next;
    }
    moment
}

#[test]
fn whatever_happens_no_run_is_doubled_and_no_job_is_starved() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("THINBAK_SEED").unwrap_or_else(rand::random);
    let seeds = number("THINBAK_SEEDS").unwrap_or(if number("THINBAK_SEED").is_some() { 1 } else { 12 });
    for seed in (0..seeds).map(|more| first.wrapping_add(more)) {
        println!("THINBAK_SEED={seed}");
        let mut world = World::new(seed);
        for _ in 0..400 {
            match world.random.random_range(0..100) {
                0..3 => world.jump(),
                3..6 => world.crash(),
                6..9 => world.reload(),
                _ => world.tick(),
            }
        }
        assert!(world.jobs.values().all(|job| job.last.is_some()), "a job never ran");
    }
}
