//! Why a command did not do what it was asked for, and the exit code that says so.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::format::FormatError;
use crate::store::{NotAStore, StoreError};
use crate::sys::WithRemedy;

use super::exit::Exit;
use super::mount::{MountError, OptionError, UmountError};

/// Why a command ends before its work is done.
#[derive(Debug)]
#[non_exhaustive]
pub enum CliError {
    /// An option of `-o` that makes no sense.
    MountOption { source: OptionError },
    /// The last argument of `import`, which names the store, is a `.npy` file.
    StoreIsNpy { path: PathBuf },
    /// `--name` with something else than one file.
    NameForSeveral { n_sources: usize },
    /// `--block` or `--filter` for arrays that are not compressed.
    NotCompressed,
    /// A setting of `config` that does not exist, or whose value makes no sense.
    BadSetting { setting: String, expected: &'static str },
    /// No array, and no group, has this name.
    NothingNamed { store: PathBuf, name: String },
    /// The name belongs to a group, and `-r` was not given.
    IsGroup { store: PathBuf, name: String },
    /// The store's answer.
    Store { source: StoreError },
    /// A file or folder outside the store.
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// Several things were asked for, and these many were not done; each was reported.
    Partly { what: &'static str, n_failed: usize, n_asked: usize, exit: Exit },
    /// An array cannot be read, and so the store cannot be upgraded in its place.
    NotUpgraded { store: PathBuf, source: Box<StoreError> },
    /// `upgrade --to` of a store that is new already.
    NotOld { store: PathBuf },
    /// `verify` found damage; each was reported.
    Damaged { store: PathBuf, n_problems: usize, is_old: bool },
    /// `repair` could not bring everything back; each loss was reported.
    Lossy { store: PathBuf, n_arrays: usize },
    /// Mounting failed.
    Mount { source: MountError },
    /// Unmounting failed.
    Umount { source: UmountError },
    /// The background process reported this error.
    Background { exit: Exit, message: String },
    /// Stdout cannot be written.
    Stdout { source: io::Error },
    /// Whoever read stdout has gone away, which is not an error.
    StdoutClosed,
}

impl CliError {
    /// An error that met a file or folder outside the store; fits `map_err`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CliError {
        let path = path.to_owned();
        move |source| CliError::Io { action, path, source }
    }

    /// An error that met stdout.
    pub fn from_stdout(source: io::Error) -> CliError {
        if source.kind() == io::ErrorKind::BrokenPipe {
            CliError::StdoutClosed
        } else {
            CliError::Stdout { source }
        }
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            CliError::MountOption { .. }
            | CliError::StoreIsNpy { .. }
            | CliError::NameForSeveral { .. }
            | CliError::NotCompressed
            | CliError::BadSetting { .. } => Exit::Usage,
            CliError::NothingNamed { .. }
            | CliError::IsGroup { .. }
            | CliError::NotOld { .. }
            | CliError::Io { .. }
            | CliError::Stdout { .. } => Exit::Failed,
            CliError::Store { source } => store_exit(source),
            CliError::NotUpgraded { source, .. } => store_exit(source),
            CliError::Damaged { .. } | CliError::Lossy { .. } => Exit::Damaged,
            CliError::Mount { source } => source.exit(),
            CliError::Umount { source } => source.exit(),
            CliError::Background { exit, .. } | CliError::Partly { exit, .. } => *exit,
            CliError::StdoutClosed => Exit::Done,
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CliError::MountOption { source } => source.fmt(f),
            CliError::StoreIsNpy { path } => write!(
                f,
                "{}: is named like an array; the last argument of import is the store, as in \"npkfs import a.npy b.npy data.npk\"",
                path.display()
            ),
            CliError::NameForSeveral { n_sources } => write!(
                f,
                "--name is for a single file, and {n_sources} sources are given; for a folder or several files use --prefix"
            ),
            CliError::NotCompressed => {
                f.write_str("--block and --filter are for compressed arrays; add --compress")
            }
            CliError::BadSetting { setting, expected } => {
                write!(f, "setting \"{setting}\": expected {expected}")
            }
            CliError::NothingNamed { store, name } => write!(
                f,
                "{}: array {name:?} does not exist, nor does a group of this name; see \"npkfs ls {}\"",
                store.display(),
                store.display()
            ),
            CliError::IsGroup { store, name } => {
                write!(f, "{}: {name:?} is a group; -r removes it with all that is in it", store.display())
            }
            CliError::Store { source } => source.fmt(f),
            CliError::Io { action, path, source } => {
                write!(f, "cannot {action} {}: {}", path.display(), WithRemedy(source))
            }
            CliError::Partly { what, n_failed, n_asked, .. } => write!(f, "{n_failed} of {n_asked} {what}"),
            CliError::NotUpgraded { store, source } => write!(
                f,
                "{source}; nothing was changed; \"npkfs upgrade --to DIR --skip-damaged {}\" copies what can be read",
                store.display()
            ),
            CliError::NotOld { store } => write!(
                f,
                "{}: is of this release already; nothing was written; copy it with cp -r",
                store.display()
            ),
            CliError::Damaged { store, n_problems, is_old } => {
                let problems = if *n_problems == 1 { "problem" } else { "problems" };
                let store = store.display();
                // What an old release wrote is not repaired, but copied as far as it can be read.
                let next = if *is_old { "upgrade --to DIR --skip-damaged" } else { "repair" };
                write!(f, "{store}: damaged: {n_problems} {problems}; run \"npkfs {next} {store}\"")
            }
            CliError::Lossy { store, n_arrays: 0 } => {
                write!(f, "{}: repaired; commits of the lost manifest may be missing", store.display())
            }
            CliError::Lossy { store, n_arrays } => {
                let arrays = super::output::count(*n_arrays, "array");
                write!(f, "{}: repaired, but not all is as it was: see {arrays} above", store.display())
            }
            CliError::Mount { source } => source.fmt(f),
            CliError::Umount { source } => source.fmt(f),
            CliError::Background { message, .. } => f.write_str(message),
            CliError::Stdout { source } => write!(f, "cannot write to stdout: {source}"),
            CliError::StdoutClosed => f.write_str("stdout was closed"),
        }
    }
}

impl Error for CliError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            CliError::MountOption { source } => Some(source),
            CliError::Store { source } => Some(source),
            CliError::NotUpgraded { source, .. } => Some(source),
            CliError::Mount { source } => Some(source),
            CliError::Umount { source } => Some(source),
            CliError::Io { source, .. } | CliError::Stdout { source } => Some(source),
            _ => None,
        }
    }
}

impl From<StoreError> for CliError {
    fn from(source: StoreError) -> Self {
        CliError::Store { source }
    }
}

impl From<OptionError> for CliError {
    fn from(source: OptionError) -> Self {
        CliError::MountOption { source }
    }
}

impl From<MountError> for CliError {
    fn from(source: MountError) -> Self {
        CliError::Mount { source }
    }
}

impl From<UmountError> for CliError {
    fn from(source: UmountError) -> Self {
        CliError::Umount { source }
    }
}

/// The exit code of the store's answers: the one place that decides it.
pub fn store_exit(error: &StoreError) -> Exit {
    match error {
        StoreError::Locked { .. } | StoreError::Interrupted { .. } | StoreError::ChangedMeanwhile { .. } => {
            Exit::InUse
        }
        StoreError::DataFile { .. } | StoreError::Block { .. } => Exit::Damaged,
        StoreError::Format { source, .. } => match source {
            // Written by a newer release: unreadable here, but whole.
            FormatError::Version { .. } | FormatError::Features { .. } | FormatError::UnknownCodec { .. } => {
                Exit::Failed
            }
            _ => Exit::Damaged,
        },
        StoreError::NotAStore { found, .. } => match found {
            NotAStore::ManifestLost
            | NotAStore::TableLost
            | NotAStore::Overwritten
            | NotAStore::NothingLeft => Exit::Damaged,
            NotAStore::Missing | NotAStore::NotADirectory | NotAStore::NoManifest => Exit::Failed,
        },
        StoreError::Poisoned { first, .. } => store_exit(first),
        StoreError::NotFound { .. }
        | StoreError::Exists { .. }
        | StoreError::StoreExists { .. }
        | StoreError::ReadOnly { .. }
        | StoreError::OldLayout { .. }
        | StoreError::ShapeMismatch { .. }
        | StoreError::DtypeMismatch { .. }
        | StoreError::RowCount { .. }
        | StoreError::IndexOutOfRange { .. }
        | StoreError::NoRows { .. }
        | StoreError::BufferLen { .. }
        | StoreError::HeaderWrite { .. }
        | StoreError::OutOfBounds { .. }
        | StoreError::Refused { .. }
        | StoreError::Io { .. } => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::sys::lock::Holder;

    #[test]
    fn exit_codes_tell_damage_from_use_and_refusal() {
        let store = || PathBuf::from("data.npk");
        let locked = StoreError::Locked {
            store: store(),
            waited: Duration::from_secs(30),
            holder: Some(Holder::Process(7)),
        };
        assert_eq!(store_exit(&locked), Exit::InUse);
        let broken = |source| StoreError::Format { path: "data.npk/metadata.npkm".into(), source };
        let magic = || FormatError::Magic { expected: "manifest", found: b"RIFF".to_vec() };
        assert_eq!(store_exit(&broken(magic())), Exit::Damaged);
        assert_eq!(store_exit(&broken(FormatError::Version { found: 9, newest: 1 })), Exit::Failed);
        let first = Arc::new(broken(magic()));
        assert_eq!(store_exit(&StoreError::Poisoned { store: store(), first }), Exit::Damaged);
        let missing = StoreError::NotAStore { path: store(), found: NotAStore::Missing };
        assert_eq!(store_exit(&missing), Exit::Failed);
        let lost = StoreError::NotAStore { path: store(), found: NotAStore::ManifestLost };
        assert_eq!(store_exit(&lost), Exit::Damaged);
    }
}
