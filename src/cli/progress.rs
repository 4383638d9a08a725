//! A progress bar in bytes, on stderr, and only where that is a terminal.

use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;

/// Bytes that are done, of how many.
pub struct Progress {
    bar: ProgressBar,
    done: u64,
}

impl Progress {
    /// `wanted` is what the options say; a terminal is needed as well.
    pub fn new(n_bytes: u64, wanted: bool) -> Progress {
        let target = if wanted && stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(n_bytes), target).with_style(
            ProgressStyle::with_template(
                "{bar:24} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} {wide_msg}",
            )
            .expect("the template is correct"),
        );
        bar.enable_steady_tick(Duration::from_millis(200));
        Progress { bar, done: 0 }
    }

    /// There are these many bytes, which was not known before.
    pub fn of(&self, n_bytes: u64) {
        self.bar.set_length(n_bytes);
    }

    /// Begins with the file of this name.
    pub fn start(&self, name: &str) {
        self.bar.set_message(output::printable_name(name));
    }

    /// Of the file that was begun, `n_bytes` are done.
    pub fn at(&self, n_bytes: u64) {
        self.bar.set_position(self.done.saturating_add(n_bytes));
    }

    /// The file that was begun, `n_bytes` long, is done or has failed.
    pub fn end(&mut self, n_bytes: u64) {
        self.done = self.done.saturating_add(n_bytes);
        self.bar.set_position(self.done);
    }

    /// Writes a message without tearing the bar.
    pub fn message(&self, text: &str) {
        self.suspend(|| output::message(text));
    }

    /// Does what writes to stderr without tearing the bar.
    pub fn suspend(&self, write: impl FnOnce()) {
        self.bar.suspend(write);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
