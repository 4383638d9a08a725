//! `npkfs mount`, `npkfs umount` and `npkfs status`.
//!
//! A mount is served by a process of its own. [`preflight`] finds out beforehand why it could not work, [`serve`] is
//! that process, [`background`] starts it and waits for its report, [`presence`] lets `umount` wait for its end,
//! and [`status`](mod@status) lets others ask how it is.

mod background;
mod error;
mod options;
mod preflight;
mod presence;
mod ready;
mod serve;
mod status;
mod umount;

pub use error::{MountError, UmountError};
pub use options::{Choices, OptionError};
pub use status::status;
pub use umount::umount;

use super::config::{MountConfig, Process};
use super::error::CliError;
use super::output::{self, Out};

pub fn mount(config: MountConfig) -> Result<(), CliError> {
    match &config.process {
        Process::Foreground => serve::in_foreground(&config),
        Process::Background { args, log } => background::start(&config, args, log.as_deref()),
        Process::Reporting => background::report(|reporter| serve::in_background(&config, reporter)),
    }
}

/// Says on stdout that the mount answers, and `note`, if it is anything, on stderr. It does, even where that cannot be
/// said.
fn say_mounted(config: &MountConfig, note: &str) {
    if !note.is_empty() {
        output::message(note);
    }
    let mut out = Out::new();
    let line = format!("{} mounted at {}", config.store.display(), config.mountpoint.display());
    if let Err(error) = out.line(&line).and_then(|()| out.finish()) {
        log::warn!("{line}, but {error}");
    }
}
