//! Progress bars: rate, done, left, ETA.

use std::{collections::HashMap, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

const KNOWN_TOTAL: &str =
    "{prefix} {msg} [{wide_bar}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} ETA {eta}";
const UNKNOWN_TOTAL: &str = "{prefix} {msg} {spinner} {binary_bytes} {binary_bytes_per_sec}";

/// A bar for each thing that is worked on. Gone from the screen when dropped.
pub(crate) struct ProgressBars {
    bars: MultiProgress,
    by_name: HashMap<String, ProgressBar>,
}

impl ProgressBars {
    pub(super) fn new(visible: bool) -> Self {
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), by_name: HashMap::new() }
    }

    /// Moves the bar of `name`. A total of 0 is unknown.
    pub(crate) fn update(&mut self, name: &str, phase: &str, done: u64, total: u64) {
        if !self.by_name.contains_key(name) {
            // It is drawn as soon as it is added, so it is dressed first.
            let bar = ProgressBar::no_length()
                .with_style(style(UNKNOWN_TOTAL))
                .with_prefix(name.to_owned())
                .with_message(phase.to_owned());
            let bar = self.bars.add(bar);
            bar.enable_steady_tick(Duration::from_millis(200));
            self.by_name.insert(name.to_owned(), bar);
        }
        let Some(bar) = self.by_name.get(name) else { return };
        if bar.message() != phase {
            bar.reset();
            bar.set_message(phase.to_owned());
        }
        if total > 0 {
            bar.set_style(style(KNOWN_TOTAL));
            bar.set_length(total);
        } else {
            bar.set_style(style(UNKNOWN_TOTAL));
        }
        bar.set_position(done);
    }

    /// Takes the bar of `name` away.
    pub(crate) fn finish(&mut self, name: &str) {
        if let Some(bar) = self.by_name.remove(name) {
            bar.finish_and_clear();
        }
    }

    /// Takes all bars away, so that something else can be printed.
    pub(crate) fn clear(&mut self) {
        for (_, bar) in self.by_name.drain() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for ProgressBars {
    fn drop(&mut self) {
        self.clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid() {
        for template in [KNOWN_TOTAL, UNKNOWN_TOTAL] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
