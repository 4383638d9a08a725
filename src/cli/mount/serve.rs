//! The process that serves a mount, from the opened store to the end by `umount` or a signal.

use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::config::MountConfig;
use crate::cli::error::CliError;
use crate::cli::exit::Exit;
use crate::fuse::{self, MountOptions, PassthroughMode};
use crate::store::{Access, Store, StoreError};
use crate::sys::{mounts, process};

use super::background::Reporter;
use super::preflight::{self, Place};
use super::presence::Presence;
use super::{Choices, MountError, ready, say_mounted, status};

/// How long what is mounted here after the end may take to tell that it is not ours.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves the mount in this process, and says on stdout when it answers.
pub fn in_foreground(config: &MountConfig) -> Result<(), CliError> {
    serve(config, |note| {
        say_mounted(config, &note);
        ready::tell(&format!("{} mounted at {}", config.store.display(), config.mountpoint.display()));
        Ok(())
    })
}

/// Serves the mount in a process that was started for it.
pub fn in_background(config: &MountConfig, reporter: &mut Reporter) -> Result<(), CliError> {
    serve(config, |note| {
        // Not before: while autofs waits for a mount, it lets nobody look at the mountpoint but its own process group.
        process::new_session()
            .map_err(|source| MountError::Start { action: "leave the terminal", source })?;
        // No folder is kept busy that somebody may want to unmount. All paths are absolute by now.
        std::env::set_current_dir("/").map_err(CliError::io("change to", Path::new("/")))?;
        reporter.ready(&note).map_err(|source| {
            MountError::Start { action: "report to who started this process", source }.into()
        })
    })
}

/// Mounts, calls `ready` when the mount answers, with what there is to say about it, and returns when it has ended. If
/// `ready` fails, there is no mount.
fn serve(config: &MountConfig, ready: impl FnOnce(String) -> Result<(), CliError>) -> Result<(), CliError> {
    // Before anything is mounted: from here on a signal ends the mount, not just the process.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])
        .map_err(|source| MountError::Start { action: "handle signals", source })?;
    // Decoded files and open views have a share of the descriptors, and the usual limit is a small one.
    if let Err(error) = process::raise_max_descriptors() {
        log::info!("no more descriptors are used than usual: {error}");
    }
    let store = open(config)?;
    let note = note(config, &store);
    let place = preflight::check(&config.store, &config.mountpoint, &config.choices)?;

    let shown = || config.mountpoint.clone();
    let mounted = fuse::mount(store, &place.mountpoint, &options(&config.choices, &place))
        .map_err(|source| MountError::Fuse { source })?;
    let mount = Mount::find(place.mountpoint.clone())
        .map_err(|source| MountError::NoAnswer { mountpoint: shown(), source })?;
    // Before it asks itself anything: should it be killed then, only who finds it can end its wait for itself.
    let presence = Presence::announce(mount.dev);
    mount.answer().map_err(|source| MountError::NoAnswer { mountpoint: shown(), source })?;
    if let Err(error) = &presence {
        log::info!("\"npkfs umount\" cannot wait for the end of this process: {error}");
    }
    let place = status::Place { dev: mount.dev, store: place.store };
    let status = status::Answering::start(place, config.choices.read_only, mounted.monitor());
    if let Err(error) = &status {
        log::info!("\"npkfs status\" cannot ask this process: {error}");
    }
    ready(note)?;

    let handle = signals.handle();
    let ended = thread::scope(|scope| {
        scope.spawn(|| {
            for (n_before, signal) in signals.forever().enumerate() {
                mount.end_by_signal(signal, n_before);
            }
        });
        let ended = mounted.wait();
        mount.ended.store(true, Ordering::Relaxed);
        handle.close();
        ended
    });
    ended.map_err(|source| MountError::Serving { mountpoint: shown(), source })?;
    log::info!("{} unmounted", mount.mountpoint.display());
    Ok(())
}

fn open(config: &MountConfig) -> Result<Store, CliError> {
    if config.choices.read_only {
        return Ok(Store::open(&config.store, Access::Read)?);
    }
    Store::open(&config.store, Access::Write).map_err(|error| match &error {
        StoreError::Io { source, .. }
            if matches!(
                source.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            MountError::StoreDenied { source: Box::new(error) }.into()
        }
        _ => error.into(),
    })
}

/// What somebody should know who asked for a mount that can be written to, and gets none; else nothing.
fn note(config: &MountConfig, store: &Store) -> String {
    match store.old_layout() {
        Some(layout) if !config.choices.read_only => {
            let store = config.store.display();
            format!(
                "{store}: the store has the layout of NumPack {layout}, and is mounted read-only; to change it, run \"npkfs upgrade {store}\""
            )
        }
        _ => String::new(),
    }
}

/// The mount that this process serves. Dropping it unmounts, if it is still there.
struct Mount {
    mountpoint: PathBuf,
    dev: u64,
    /// Whether the kernel has ended the session.
    ended: AtomicBool,
}

impl Mount {
    fn find(mountpoint: PathBuf) -> io::Result<Mount> {
        let entry = mounts::find(&mountpoint)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Mount { mountpoint, dev: entry.dev, ended: AtomicBool::new(false) })
    }

    /// Waits for the answer to a first question.
    fn answer(&self) -> io::Result<()> {
        let metadata = preflight::answer(&self.mountpoint)?;
        if metadata.dev() == self.dev {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::NotFound, "another file system answers"))
        }
    }

    fn end_by_signal(&self, signal: i32, n_before: usize) {
        if n_before > 0 {
            log::warn!(
                "signal {signal}: ended at once, although programs still use {}",
                self.mountpoint.display()
            );
            std::process::exit(i32::from(Exit::Failed as u8));
        }
        log::info!("signal {signal}: unmounting {}", self.mountpoint.display());
        if let Err(error) = self.end() {
            log::error!("cannot unmount {}: {error}", self.mountpoint.display());
        }
    }

    fn is_dead(&self) -> bool {
        let path = self.mountpoint.clone();
        let probed = preflight::in_time(PROBE_TIMEOUT, move || mounts::probe(&path));
        matches!(probed, Some(Err(error)) if error.kind() == io::ErrorKind::NotConnected)
    }

    /// Unmounts; where programs use the mount, takes it out of sight, and it ends with the last of them.
    fn end(&self) -> io::Result<()> {
        // Whatever else has been mounted here since is not ours. To look at the mountpoint itself would have autofs mount
        // again what it has just unmounted.
        if mounts::find_at(&self.mountpoint)?.is_none_or(|entry| entry.dev != self.dev) {
            return Ok(());
        }
        // Device numbers are used again: after the end, a mount with this one is ours only if it is dead.
        if self.ended.load(Ordering::Relaxed) && !self.is_dead() {
            return Ok(());
        }
        match mounts::unmount(&self.mountpoint, false) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                log::warn!(
                    "{} is in use; it is out of sight now, and ends when the last program closes its files, or at the \
                     next signal",
                    self.mountpoint.display()
                );
                mounts::unmount(&self.mountpoint, true)
            }
            result => result,
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            log::error!("cannot unmount {}: {error}", self.mountpoint.display());
        }
    }
}

fn options(choices: &Choices, place: &Place) -> MountOptions {
    MountOptions {
        read_only: choices.read_only,
        allow_other: choices.allow_other,
        passthrough: if choices.passthrough { PassthroughMode::Auto } else { PassthroughMode::Off },
        threads: choices.threads.map_or(0, NonZeroUsize::get),
        compression: choices.compression,
        decoded: choices.decoded,
        shown: choices.shown,
        kernel: choices.kernel.iter().map(|&option| option.to_owned()).collect(),
        source_name: place.store.to_string_lossy().into_owned(),
    }
}
