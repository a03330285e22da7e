//! A host: a pool with a volume that changes, and all that one does with its generations.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::Value;
use thinbak_tests::{Model, OpenPool, Outcome, Program, hash_file, json_lines, number, spawn, summary_of};

use crate::{
    history::{History, State},
    weather::{Answer, Job, Storm},
};

const SIZE: u64 = 8 * 1024 * 1024;

pub(crate) struct Host<'a> {
    storm: &'a Storm,
    thinbak: Program,
    pool: String,
    model: Model,
    history: History,
    random: StdRng,
}

/// Numbers of the generations in a list.
fn numbers(outcome: &Outcome) -> Result<Vec<u64>> {
    let document: Value = serde_json::from_slice(&outcome.stdout)?;
    let rows = document.get("generations").and_then(Value::as_array).context("no generations")?;
    rows.iter().map(|row| number(row, "generation")).collect()
}

impl<'a> Host<'a> {
    pub(crate) fn new(storm: &'a Storm, host: u64, seed: u64) -> Result<Self> {
        let thinbak = storm.thinbak(&format!("state-host-{host}"))?;
        let pool = format!("p{host}");
        let dir = storm.scratch.join(&pool).display().to_string();
        thinbak.ok(&["pool", "create", &pool, "--size", "128M", "--dir", &dir])?;
        thinbak.ok(&["volume", "create", &format!("{pool}/v"), "--size", &SIZE.to_string()])?;
        // The first two write the same, not at the same time: they share chunks.
        let model = Model::new(SIZE, seed ^ (host / 2));
        let random = StdRng::seed_from_u64(seed ^ (10 + host));
        Ok(Self { storm, thinbak, pool, model, history: History::default(), random })
    }

    fn local(&self) -> String {
        format!("{}/v", self.pool)
    }

    fn named(&self, number: u64) -> String {
        format!("h/{}/v:{number}", self.pool)
    }

    fn file(&self) -> PathBuf {
        self.storm.scratch.join(&format!("{}.img", self.pool))
    }

    fn run(&mut self, job: Job, words: &[&str]) -> Result<Answer> {
        self.storm.run(job, &self.thinbak, words, &mut self.random)
    }

    /// A random one of the generations in a state.
    fn any(&mut self, is: impl Fn(State) -> bool) -> Option<u64> {
        let all = self.history.in_state(is);
        all.choose(&mut self.random).copied()
    }

    /// One thing after the other.
    pub(crate) fn live(&mut self) -> Result<()> {
        match self.random.random_range(0..100) {
            0..40 => self.back_up(),
            40..52 => self.delete(),
            52..62 => self.undelete(),
            62..70 => self.prune(),
            70..78 => self.restore(),
            78..86 => self.restore_while_deleted(),
            86..92 => self.restore_in_place(),
            _ => self.look(),
        }
    }

    fn back_up(&mut self) -> Result<()> {
        let pool = OpenPool::open(&self.storm.scratch.join(&self.pool))?;
        self.model.scribble(&pool, "v", self.random.random_range(0..30))?;
        drop(pool);
        let content = blake3::hash(&self.model.bytes);
        match self.run(Job::Backup, &["backup", &self.local(), "--host", "h"])? {
            Answer::Done(outcome) => {
                self.history.committed(number(&summary_of(&outcome)?, "generation")?, content)
            }
            Answer::Refused(outcome) => outcome.expect(0).map(drop),
            Answer::Unheard => {
                self.history.unheard(content);
                Ok(())
            }
        }
    }

    fn delete(&mut self) -> Result<()> {
        let Some(number) = self.any(|state| state == State::Visible) else { return Ok(()) };
        self.delete_one(number)
    }

    fn delete_one(&mut self, number: u64) -> Result<()> {
        let epoch = self.storm.epoch();
        let state = match self.run(Job::Delete, &["generation", "delete", &self.named(number)])? {
            Answer::Done(_) => State::Deleted,
            Answer::Refused(outcome) => return outcome.expect(0).map(drop),
            Answer::Unheard => State::Doubtful(epoch),
        };
        self.history.set(number, state);
        Ok(())
    }

    fn undelete(&mut self) -> Result<()> {
        let Some(number) = self.any(|state| matches!(state, State::Deleted | State::Gone)) else {
            return Ok(());
        };
        let epoch = self.storm.epoch();
        let gone = self.history.state(number) == Some(State::Gone);
        let state = match self.run(Job::Undelete, &["generation", "undelete", &self.named(number)])? {
            Answer::Done(_) => {
                ensure!(!gone, "generation {number} came back, whose content was given up");
                State::Visible
            }
            Answer::Refused(outcome) => {
                outcome.expect(5)?;
                State::Gone
            }
            Answer::Unheard if gone => State::Gone,
            Answer::Unheard => State::Doubtful(epoch),
        };
        self.history.set(number, state);
        Ok(())
    }

    fn prune(&mut self) -> Result<()> {
        let volume = format!("h/{}/v", self.pool);
        let keep = self.random.random_range(1..6).to_string();
        let policy = match self.random.random_bool(0.7) {
            true => ["--keep-last", &keep],
            false => ["--keep-within", "20s"],
        };
        let epoch = self.storm.epoch();
        match self.run(Job::Prune, &[&["prune", &volume], &policy[..]].concat())? {
            Answer::Done(outcome) => {
                for line in json_lines(&outcome)? {
                    if line.get("action").is_some_and(|action| action == "remove") {
                        self.history.set(number(&line, "generation")?, State::Deleted);
                    }
                }
            }
            // There may be no volume of that name yet.
            Answer::Refused(outcome) => {
                ensure!(outcome.code == 10 && self.history.is_empty(), "{outcome:?}");
            }
            Answer::Unheard => self.history.doubt_visible(epoch),
        }
        Ok(())
    }

    /// What a restore wrote, if it has ended; the file goes.
    fn check_restored(&self, number: u64) -> Result<()> {
        let file = self.file();
        if file.exists() {
            self.history.check(number, hash_file(&file)?)?;
            fs::remove_file(&file)?;
        }
        Ok(())
    }

    fn restore(&mut self) -> Result<()> {
        let Some(number) = self.any(|state| state == State::Visible) else { return Ok(()) };
        let to = self.file().display().to_string();
        let answer = self.run(Job::Restore, &["restore", &self.named(number), "--to-file", &to])?;
        if let Answer::Refused(outcome) = answer {
            outcome.expect(0)?;
        }
        self.check_restored(number)
    }

    /// Deletes what is being restored.
    fn restore_while_deleted(&mut self) -> Result<()> {
        let Some(number) = self.any(|state| state == State::Visible) else { return Ok(()) };
        let epoch = self.storm.epoch();
        let (from, to) = (self.named(number), self.file().display().to_string());
        let words = ["restore", &from, "--to-file", &to];
        let restore = self.thinbak.start(&self.storm.words(&words))?;
        self.delete_one(number)?;
        let answer = self.storm.judge(Job::RestoreWhileDeleted, &words, epoch, restore.wait()?)?;
        if let Answer::Refused(outcome) = answer {
            // It was deleted before the restore had begun.
            outcome.expect(10)?;
        }
        self.check_restored(number)
    }

    /// The volume becomes what it was.
    fn restore_in_place(&mut self) -> Result<()> {
        let Some(number) = self.any(|state| state == State::Visible) else { return Ok(()) };
        let (from, to) = (self.named(number), format!("--in-place={}", self.local()));
        let answer = self.run(Job::RestoreInPlace, &["restore", &from, &to])?;
        if let Answer::Refused(outcome) = answer {
            return outcome.expect(0).map(drop);
        }
        let file = self.file();
        let mut command = self.thinbak.command(&["volume", "export", &self.local()]);
        ensure!(spawn(command.stdout(fs::File::create(&file)?))?.wait()?.success(), "an export failed");
        let bytes = fs::read(&file)?;
        fs::remove_file(&file)?;
        let is_restored = self.history.content(number) == Some(blake3::hash(&bytes));
        let is_unchanged = matches!(answer, Answer::Unheard) && bytes == self.model.bytes;
        ensure!(is_restored || is_unchanged, "{from} was restored in part");
        self.model.bytes = bytes;
        Ok(())
    }

    /// Compares what the server lists with what it said.
    fn look(&mut self) -> Result<()> {
        let epoch = self.storm.epoch();
        let volume = format!("h/{}/v", self.pool);
        let mut lists = Vec::new();
        for words in [&["generation", "list", &volume][..], &["generation", "list", "--deleted", &volume]] {
            match self.run(Job::Look, words)? {
                Answer::Done(outcome) => lists.push(numbers(&outcome)?),
                // There may be no volume of that name yet.
                Answer::Refused(outcome) => {
                    ensure!(outcome.code == 10 && self.history.is_empty(), "{outcome:?}");
                }
                Answer::Unheard => {}
            }
        }
        match lists.as_slice() {
            [visible, deleted] if epoch == self.storm.epoch() => self.history.listed(visible, deleted, epoch),
            _ => Ok(()),
        }
    }

    /// Nothing else runs: all is as it was told, and what is visible restores.
    pub(crate) fn check(&mut self) -> Result<()> {
        let volume = format!("h/{}/v", self.pool);
        let list = |words: &[&str]| -> Result<Vec<u64>> {
            numbers(
                &self
                    .thinbak
                    .run(&self.storm.words(&[&["generation", "list", &volume], words].concat()))?
                    .expect(0)?,
            )
        };
        let (visible, deleted) = (list(&[])?, list(&["--deleted"])?);
        ensure!(!visible.is_empty(), "{volume} has no generation");
        self.history.listed(&visible, &deleted, self.storm.epoch())?;
        let to = self.file().display().to_string();
        for number in visible {
            let words = self.storm.words(&["restore", &self.named(number), "--to-file", &to]);
            self.thinbak.run(&words)?.expect(0)?;
            ensure!(self.file().exists(), "nothing was restored");
            self.check_restored(number)?;
        }
        self.thinbak.ok(&["pool", "check", &self.pool])?;
        Ok(())
    }
}
