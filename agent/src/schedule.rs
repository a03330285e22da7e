//! Jobs that the agent does by itself: a `[[job]]` of the configuration, run when it is due.
//!
//! | part | what it is |
//! |---|---|
//! | `scheduler` | what is due when; pure |
//! | `state` | what is remembered of jobs and volumes, on disk |
//! | `select` | which volumes a job means now |
//! | `run` | one run: hooks, the backup, retention |
//! | `hooks` | a program of the configuration, with its time limit |
//! | `keeper` | the jobs of a process: runs them, one at a time each, and stops them |
//! | `keep` | the daemon's loop: asks the scheduler, has the keeper run |
//! | `report` | what `thinbak status` tells |
//!
//! **What a crash leaves.** That a run began is on disk before anything of it happens: its moment, that it counts for the
//! schedule, and, before the program is started, that the hook `before` was begun. How a volume's backup ended is on disk
//! before the next thing happens; how the run ended, and whether it is to be repeated, in one step. So after a crash at
//! any moment the next process finds the run as one that did not end. It runs the hook `after` if `before` was begun, and
//! the job is due again at once, as a repetition that is counted. A file that cannot be written is told in the log and
//! does not keep a backup from being made.

mod hooks;
mod keep;
mod keeper;
mod report;
mod retention;
mod run;
mod scheduler;
mod select;
mod service;
mod state;

pub(crate) use self::{keep::keep, keeper::check_jobs, report::status, scheduler::Plan, state::State};
pub use self::{
    keeper::{Keeper, ReadSettings},
    service::ScheduleService,
};

#[cfg(test)]
mod tests;
