//! From what the user typed ([`super::opts`]) to what the program needs.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use super::error::CliError;
use super::mount::Choices;
use super::opts::{
    BlockOpts, CommandOpts, CompactOpts, ExportOpts, FilterOpt, ImportOpts, InfoOpts, LsOpts, MountOpts,
    MvOpts, Opts, RecompressOpts, RepairOpts, RmOpts, StatusOpts, UmountOpts, UpgradeOpts, VerifyOpts,
};
use super::units;
use crate::store::Compression;

/// One run of `npkfs`.
#[derive(Debug)]
pub struct Config {
    pub log: LogConfig,
    pub command: Command,
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug)]
pub struct LogConfig {
    /// The level that -v or -q asked for; `None` is for the environment to say.
    pub level: Option<LevelFilter>,
    /// Lines have time and origin: they go to a file or a service's journal.
    pub timestamps: bool,
}

#[derive(Debug)]
pub enum Command {
    Mount(MountConfig),
    Umount(UmountConfig),
    Status(StatusOpts),
    Import(ImportConfig),
    Export(ExportConfig),
    Ls(LsOpts),
    Info(InfoOpts),
    Verify(VerifyConfig),
    Repair(RepairConfig),
    Rm(RmOpts),
    Mv(MvOpts),
    Compact(CompactOpts),
    Recompress(RecompressConfig),
    Upgrade(UpgradeConfig),
    Config(SettingsConfig),
}

#[derive(Debug)]
pub struct MountConfig {
    pub store: PathBuf,
    pub mountpoint: PathBuf,
    pub choices: Choices,
    pub process: Process,
}

/// Which process serves a mount.
#[derive(Debug)]
pub enum Process {
    /// This one, until it is unmounted.
    Foreground,
    /// A new one, which this one starts and leaves; its arguments, and its log.
    Background { args: Vec<OsString>, log: Option<PathBuf> },
    /// This one, which was started for it and reports to the socket on stdin.
    Reporting,
}

#[derive(Debug)]
pub struct UmountConfig {
    pub mountpoint: PathBuf,
    pub lazy: bool,
    pub force: bool,
    pub timeout: Duration,
}

#[derive(Debug)]
pub struct ImportConfig {
    pub sources: Vec<PathBuf>,
    pub store: PathBuf,
    pub naming: Naming,
    pub overwrite: bool,
    pub compression: Option<Compression>,
    pub quiet: bool,
}

/// How imported arrays are named.
#[derive(Debug)]
pub enum Naming {
    /// The one file gets this name.
    Exactly(String),
    /// This, then the name that the file leads to; empty or ends with `/`.
    After(String),
}

#[derive(Debug)]
pub struct ExportConfig {
    pub store: PathBuf,
    /// Arrays and groups; none stands for all.
    pub names: Vec<String>,
    pub dest: PathBuf,
    pub overwrite: bool,
    pub quiet: bool,
}

#[derive(Debug)]
pub struct VerifyConfig {
    pub store: PathBuf,
    pub deep: bool,
    pub json: bool,
    pub quiet: bool,
}

#[derive(Debug)]
pub struct RepairConfig {
    pub store: PathBuf,
    /// `None`: in its place.
    pub to: Option<PathBuf>,
    pub json: bool,
    pub quiet: bool,
}

#[derive(Debug)]
pub struct RecompressConfig {
    pub store: PathBuf,
    /// Arrays and groups; none stands for all.
    pub names: Vec<String>,
    /// `None`: not at all.
    pub compression: Option<Compression>,
    pub quiet: bool,
}

#[derive(Debug)]
pub struct UpgradeConfig {
    pub store: PathBuf,
    /// `None`: in its place.
    pub to: Option<PathBuf>,
    pub skip_damaged: bool,
    pub compression: Option<Compression>,
    pub quiet: bool,
}

#[derive(Debug)]
pub struct SettingsConfig {
    pub store: PathBuf,
    pub settings: Vec<Setting>,
}

/// What is done with a setting of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    ShowCompression,
    SetCompression(Option<Compression>),
}

impl TryFrom<Opts> for Config {
    type Error = CliError;

    fn try_from(opts: Opts) -> Result<Config, CliError> {
        let Opts { command, verbose, quiet } = opts;
        let level = match (quiet, verbose) {
            (true, _) => Some(LevelFilter::Error),
            (false, 0) => None,
            (false, 1) => Some(LevelFilter::Info),
            (false, 2) => Some(LevelFilter::Debug),
            (false, _) => Some(LevelFilter::Trace),
        };
        let timestamps =
            matches!(&command, CommandOpts::Mount(opts) if opts.foreground || opts.report_to_stdin);
        let command = match command {
            CommandOpts::Mount(opts) => Command::Mount(mount(opts, verbose, quiet)?),
            CommandOpts::Umount(UmountOpts { mountpoint, lazy, force, timeout }) => {
                Command::Umount(UmountConfig {
                    mountpoint,
                    lazy,
                    force,
                    timeout: Duration::from_secs(timeout),
                })
            }
            CommandOpts::Status(opts) => Command::Status(opts),
            CommandOpts::Import(opts) => Command::Import(import(opts, quiet)?),
            CommandOpts::Export(opts) => {
                let ExportOpts { store, names, dest, overwrite } = opts;
                Command::Export(ExportConfig { store, names, dest, overwrite, quiet })
            }
            CommandOpts::Ls(opts) => Command::Ls(opts),
            CommandOpts::Info(opts) => Command::Info(opts),
            CommandOpts::Verify(VerifyOpts { store, deep, json }) => {
                Command::Verify(VerifyConfig { store, deep, json, quiet })
            }
            CommandOpts::Repair(RepairOpts { store, to, json }) => {
                Command::Repair(RepairConfig { store, to, json, quiet })
            }
            CommandOpts::Rm(opts) => Command::Rm(opts),
            CommandOpts::Mv(opts) => Command::Mv(opts),
            CommandOpts::Compact(opts) => Command::Compact(opts),
            CommandOpts::Recompress(RecompressOpts { store, names, level, blocks, none }) => {
                let compression = (!none).then(|| compression(level, &blocks));
                Command::Recompress(RecompressConfig { store, names, compression, quiet })
            }
            CommandOpts::Upgrade(UpgradeOpts { store, to, skip_damaged, compress, blocks }) => {
                let compression = optional_compression(compress, &blocks)?;
                Command::Upgrade(UpgradeConfig { store, to, skip_damaged, compression, quiet })
            }
            CommandOpts::Config(opts) => {
                let settings = opts.settings.iter().map(|setting| parse_setting(setting));
                let settings = settings.collect::<Result<_, _>>()?;
                Command::Config(SettingsConfig { store: opts.store, settings })
            }
        };
        Ok(Config { log: LogConfig { level, timestamps }, command })
    }
}

fn mount(opts: MountOpts, verbose: u8, quiet: bool) -> Result<MountConfig, CliError> {
    let choices = Choices::parse(&opts.options)?;
    let process = if opts.foreground {
        Process::Foreground
    } else if opts.report_to_stdin {
        Process::Reporting
    } else {
        Process::Background { args: reporting_args(&opts, verbose, quiet), log: opts.log }
    };
    Ok(MountConfig { store: opts.store, mountpoint: opts.mountpoint, choices, process })
}

/// The command line that does in a process of its own what `opts` ask for.
fn reporting_args(opts: &MountOpts, verbose: u8, quiet: bool) -> Vec<OsString> {
    let mut args = vec!["mount".into(), "--report-to-stdin".into()];
    args.extend((0..verbose).map(|_| "--verbose".into()));
    args.extend(quiet.then(|| "--quiet".into()));
    for list in &opts.options {
        args.push("-o".into());
        args.push(list.into());
    }
    args.extend(["--".into(), opts.store.clone().into(), opts.mountpoint.clone().into()]);
    args
}

fn import(opts: ImportOpts, quiet: bool) -> Result<ImportConfig, CliError> {
    let ImportOpts { sources, store, name, prefix, overwrite, compress, blocks } = opts;
    if store.extension() == Some(OsStr::new("npy")) {
        return Err(CliError::StoreIsNpy { path: store });
    }
    let compression = optional_compression(compress, &blocks)?;
    let naming = match (name, prefix) {
        (Some(_), _) if sources.len() != 1 || sources[0].is_dir() => {
            return Err(CliError::NameForSeveral { n_sources: sources.len() });
        }
        (Some(name), _) => Naming::Exactly(name),
        (None, None) => Naming::After(String::new()),
        (None, Some(prefix)) if prefix.is_empty() || prefix.ends_with('/') => Naming::After(prefix),
        (None, Some(prefix)) => Naming::After(prefix + "/"),
    };
    Ok(ImportConfig { sources, store, naming, overwrite, compression, quiet })
}

/// What `--compress`, `--block` and `--filter` say together.
fn optional_compression(level: Option<i32>, blocks: &BlockOpts) -> Result<Option<Compression>, CliError> {
    if level.is_none() && (blocks.block.is_some() || blocks.filter.is_some()) {
        return Err(CliError::NotCompressed);
    }
    Ok(level.map(|level| compression(Some(level), blocks)))
}

fn compression(level: Option<i32>, blocks: &BlockOpts) -> Compression {
    let default = Compression::default();
    Compression {
        level: level.unwrap_or(default.level),
        block_len: blocks.block.unwrap_or(default.block_len),
        filter: blocks.filter.and_then(|FilterOpt(filter)| filter),
    }
}

fn parse_setting(setting: &str) -> Result<Setting, CliError> {
    match setting.split_once('=') {
        None if setting == "compress" => Ok(Setting::ShowCompression),
        Some(("compress", value)) => match units::compress(value) {
            Some(compression) => Ok(Setting::SetCompression(compression)),
            None => {
                Err(CliError::BadSetting { setting: setting.to_owned(), expected: units::COMPRESS_EXPECTED })
            }
        },
        _ => Err(CliError::BadSetting {
            setting: setting.to_owned(),
            expected: "compress, the only setting that there is",
        }),
    }
}
