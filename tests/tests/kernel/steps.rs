//! Steps that the kernel and the engine take side by side, and what both said.

use std::fmt;

/// A pool's table: what stands behind `thin-pool` and the devices.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    /// Length of the pool.
    pub(crate) sectors: u64,
    /// Sectors of a data block.
    pub(crate) block: u32,
    /// Low water mark and features.
    pub(crate) arguments: &'static str,
}

/// One step.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    /// Brings the pool up; makes it when the metadata device is blank.
    Up(Table),
    /// Takes all devices and the pool down.
    Down,
    /// Another table for a pool that is up, which also looks at the sizes of the devices.
    Reload(Table),
    Message(&'static str),
    /// A message whose commit fails. The kernel does not tell; the engine does.
    Unsaid(&'static str),
    /// Activates a thin device of so many sectors.
    Thin(u32, u64),
    /// The same over the external origin.
    Over(u32, u64),
    /// Deactivates one.
    Remove(u32),
    /// Writes at an offset of the device, in bytes, a length from an offset of the source.
    Write(u32, u64, u64, u64),
    /// Discards a range of bytes.
    Discard(u32, u64, u64),
    /// Reads the whole device.
    Read(u32),
    /// Counts the pool's events.
    Events,
    /// Changes the size of the metadata device, in sectors, beneath the pool.
    ResizeMetadata(u64),
    /// Breaks the metadata device, or mends it.
    Break(super::breakable::Broken),
    /// Writes in the background, one at a time.
    Begin(u32, u64, u64, u64),
    /// Waits until the pool's status has this word.
    Await(&'static str),
    /// Waits for the end of the write in the background.
    End,
    /// Seconds that writes wait for a data block.
    Timeout(u64),
    /// Clears the need of a check, with `thin_check`, while the pool is down.
    ClearNeedsCheck,
}

impl Step {
    /// Whether the status is not asked for after this step: it would itself run into what was broken, or the step is not
    /// over yet.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self, Self::Break(_) | Self::Begin(..))
    }
}

/// What a step said, and the status lines after it.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// `ok`, `ok` with a value, or the text of the error number.
    pub(crate) result: String,
    /// The lines of `dmsetup status`, sorted.
    pub(crate) status: Vec<String>,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.result)?;
        self.status.iter().try_for_each(|line| write!(f, "\n        {line:?}"))
    }
}

impl Answer {
    /// Takes out what may differ: where the metadata snapshot lies. The kernel and the engine look for free metadata blocks
    /// from different places on; how many they use is the same.
    fn comparable(&self) -> Self {
        let line = |line: &String| {
            let mut words: Vec<&str> = line.split(' ').collect();
            if words.first() == Some(&"pool:")
                && let Some(held) = words.get_mut(7).filter(|held| held.parse::<u64>().is_ok())
            {
                *held = "held";
            }
            words.join(" ")
        };
        Self { result: self.result.clone(), status: self.status.iter().map(line).collect() }
    }
}

/// Where two transcripts differ, as a text; empty where they do not.
pub(crate) fn differences(steps: &[Step], kernel: &[Answer], engine: &[Answer]) -> String {
    let mut text = String::new();
    for (number, step) in steps.iter().enumerate() {
        let [kernel, engine] = [kernel, engine].map(|answers| answers.get(number));
        if kernel.map(Answer::comparable) != engine.map(Answer::comparable) {
            let [kernel, engine] =
                [kernel, engine].map(|answer| answer.map_or("nothing".to_owned(), ToString::to_string));
            text += &format!("step {number}, {step:?}\n  kernel: {kernel}\n  engine: {engine}\n");
        }
    }
    text
}
