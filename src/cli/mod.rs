//! The command line `npkfs`: what the user typed (`opts`) becomes what the program needs (`config`), which a
//! module per command carries out. Data goes to stdout; messages go to stderr, each after `npkfs: `; how a run ends
//! is an [`Exit`].

mod config;
mod edit;
mod error;
mod exit;
mod export;
mod import;
mod info;
mod logging;
mod ls;
mod mount;
mod opts;
mod output;
mod progress;
mod recompress;
mod repair;
mod select;
mod settings;
mod units;
mod upgrade;
mod verify;

use std::ffi::OsString;
use std::io::Write as _;

use clap::Parser as _;

use error::CliError;
pub use exit::Exit;

use config::{Command, Config};
use opts::Opts;

/// Runs `npkfs` with these arguments, the program's name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Exit {
    let opts = match Opts::try_parse_from(args) {
        Ok(opts) => opts,
        Err(answer) => return help_or_usage(&answer),
    };
    match Config::try_from(opts).and_then(carry_out) {
        Ok(()) => Exit::Done,
        Err(CliError::StdoutClosed) => Exit::Done,
        Err(error) => {
            output::message(&error.to_string());
            error.exit()
        }
    }
}

fn carry_out(config: Config) -> Result<(), CliError> {
    logging::init(config.log);
    match config.command {
        Command::Mount(config) => mount::mount(config),
        Command::Umount(config) => mount::umount(&config),
        Command::Status(opts) => mount::status(&opts),
        Command::Import(config) => import::import(&config),
        Command::Export(config) => export::export(&config),
        Command::Ls(opts) => ls::ls(&opts),
        Command::Info(opts) => info::info(&opts),
        Command::Verify(config) => verify::verify(&config),
        Command::Repair(config) => repair::repair(&config),
        Command::Rm(opts) => edit::rm(&opts),
        Command::Mv(opts) => edit::mv(&opts),
        Command::Compact(opts) => edit::compact(&opts),
        Command::Recompress(config) => recompress::recompress(&config),
        Command::Upgrade(config) => upgrade::upgrade(&config),
        Command::Config(config) => settings::settings(&config),
    }
}

/// Prints what the option parser has to say: help and version are data, the rest is a message.
fn help_or_usage(answer: &clap::Error) -> Exit {
    let text = answer.render().to_string();
    if answer.use_stderr() {
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        output::message(text.trim_end());
        Exit::Usage
    } else {
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(CliError::from_stdout) {
            Ok(()) | Err(CliError::StdoutClosed) => Exit::Done,
            Err(error) => {
                output::message(&error.to_string());
                error.exit()
            }
        }
    }
}
