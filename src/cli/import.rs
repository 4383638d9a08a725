//! `npkfs import`: `.npy` files into a store. Each file is one commit, so what was imported before a failure stays.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::fs::{FileKind, names};
use crate::store::{Access, NotAStore, Store, StoreError};

use super::config::{ImportConfig, Naming};
use super::error::CliError;
use super::exit::Exit;
use super::output;
use super::progress::Progress;

pub fn import(config: &ImportConfig) -> Result<(), CliError> {
    let mut found = Found::default();
    for source in &config.sources {
        found.add(source, &config.naming);
    }
    found.refuse_shared_names();

    let existed = fs::symlink_metadata(&config.store).is_ok();
    let store = open_or_create(&config.store)?;
    let result = copy_all(&store, &found, config);
    if !existed && store.is_empty() {
        // Nothing came of it: leave no empty store behind.
        Store::remove_all(&config.store)?;
    }
    result
}

/// Opens the store, or creates it where nothing or an empty folder is: other people's folders are left alone.
fn open_or_create(path: &Path) -> Result<Store, StoreError> {
    let is_empty_folder = || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    match Store::open(path, Access::Write) {
        Err(StoreError::NotAStore { found: NotAStore::Missing, .. }) => Store::open_or_create(path),
        Err(StoreError::NotAStore { found: NotAStore::NoManifest, .. }) if is_empty_folder() => {
            Store::open_or_create(path)
        }
        result => result,
    }
}

fn copy_all(store: &Store, found: &Found, config: &ImportConfig) -> Result<(), CliError> {
    let n_bytes = found.files.iter().map(|file| file.len).sum();
    let mut progress = Progress::new(n_bytes, !config.quiet);
    let mut n_failed = found.refused.len();
    for (path, refusal) in &found.refused {
        progress.message(&format!("{}: not imported: {refusal}", path.display()));
    }
    for file in &found.files {
        progress.start(&file.name);
        let compression = config.compression.as_ref();
        let mut done = |n_bytes| progress.at(n_bytes);
        match store.import_npy(&file.name, &file.path, config.overwrite, compression, &mut done) {
            Ok(()) => {}
            Err(error) if concerns_file(&error, &file.path) => {
                n_failed += 1;
                progress.message(&format!(
                    "{}: not imported: {}",
                    file.path.display(),
                    reason(&error, &file.path)
                ));
            }
            Err(error) => return Err(error.into()),
        }
        progress.end(file.len);
    }
    drop(progress);
    let n_asked = found.files.len() + found.refused.len();
    if n_failed > 0 {
        return Err(CliError::Partly {
            what: "files were not imported",
            n_failed,
            n_asked,
            exit: Exit::Failed,
        });
    }
    if !config.quiet {
        output::message(&format!(
            "{}: imported {}, {}",
            config.store.display(),
            output::count(n_asked, "array"),
            output::size(n_bytes)
        ));
    }
    Ok(())
}

/// Whether an error is about this one source, so that the others can still be imported.
fn concerns_file(error: &StoreError, source: &Path) -> bool {
    match error {
        StoreError::Exists { .. } | StoreError::Refused { .. } => true,
        StoreError::Format { path, .. } | StoreError::Io { path, .. } => path == source,
        StoreError::NotFound { .. }
        | StoreError::NotAStore { .. }
        | StoreError::StoreExists { .. }
        | StoreError::ReadOnly { .. }
        | StoreError::OldLayout { .. }
        | StoreError::ChangedMeanwhile { .. }
        | StoreError::Locked { .. }
        | StoreError::Interrupted { .. }
        | StoreError::DataFile { .. }
        | StoreError::ShapeMismatch { .. }
        | StoreError::DtypeMismatch { .. }
        | StoreError::RowCount { .. }
        | StoreError::IndexOutOfRange { .. }
        | StoreError::NoRows { .. }
        | StoreError::BufferLen { .. }
        | StoreError::HeaderWrite { .. }
        | StoreError::OutOfBounds { .. }
        | StoreError::Block { .. }
        | StoreError::Poisoned { .. } => false,
    }
}

/// The error, said after the name of the file that it is about.
fn reason(error: &StoreError, source: &Path) -> String {
    match error {
        StoreError::Format { source, .. } => source.to_string(),
        StoreError::Io { action, path, source: cause } if path == source => {
            format!("cannot {action}: {cause}")
        }
        StoreError::Exists { array, .. } => {
            format!("array {array:?} exists already; --overwrite replaces it")
        }
        error => error.to_string(),
    }
}

/// A file to import.
struct File {
    path: PathBuf,
    name: String,
    len: u64,
}

/// Why something is not imported, before its bytes are looked at.
enum Refusal {
    Unreadable(io::Error),
    NotAFile,
    NameNotUtf8,
    SharedName { name: String, first: PathBuf },
    NoArrays,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::Unreadable(error) => error.fmt(f),
            Refusal::NotAFile => f.write_str("neither a file nor a folder"),
            Refusal::NameNotUtf8 => {
                f.write_str("array names are UTF-8, and the name of this file is not; rename it")
            }
            Refusal::SharedName { name, first } => {
                write!(
                    f,
                    "{} is imported as {name:?} already; import them with different --prefix",
                    first.display()
                )
            }
            Refusal::NoArrays => f.write_str("has no .npy files"),
        }
    }
}

#[derive(Default)]
struct Found {
    files: Vec<File>,
    refused: Vec<(PathBuf, Refusal)>,
}

impl Found {
    /// Takes in what the user named: a file of any name, or the `.npy` files below a folder.
    fn add(&mut self, source: &Path, naming: &Naming) {
        let metadata = match fs::metadata(source) {
            Ok(metadata) => metadata,
            Err(error) => return self.refused.push((source.to_owned(), Refusal::Unreadable(error))),
        };
        match naming {
            Naming::Exactly(name) => self.add_file(source.to_owned(), metadata, Some(name.clone())),
            Naming::After(prefix) if metadata.is_dir() => {
                let before = self.files.len() + self.refused.len();
                self.add_folder(source, prefix);
                if self.files.len() + self.refused.len() == before {
                    self.refused.push((source.to_owned(), Refusal::NoArrays));
                }
            }
            Naming::After(prefix) => {
                let name = source.file_name().and_then(array_name).map(|name| format!("{prefix}{name}"));
                self.add_file(source.to_owned(), metadata, name);
            }
        }
    }

    /// Takes in the `.npy` files below a folder, in the order of their names. Links to files are followed, links to
    /// folders are not: they may lead back up.
    fn add_folder(&mut self, folder: &Path, prefix: &str) {
        let mut entries =
            match fs::read_dir(folder).and_then(|entries| entries.collect::<Result<Vec<_>, _>>()) {
                Ok(entries) => entries,
                Err(error) => return self.refused.push((folder.to_owned(), Refusal::Unreadable(error))),
            };
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, file_name) = (entry.path(), entry.file_name());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                match group_name(&file_name) {
                    Some(group) => self.add_folder(&path, &format!("{prefix}{group}/")),
                    None => self.refused.push((path, Refusal::NameNotUtf8)),
                }
            } else if is_npy(&file_name) {
                let name = array_name(&file_name).map(|name| format!("{prefix}{name}"));
                match fs::metadata(&path) {
                    Ok(metadata) => self.add_file(path, metadata, name),
                    Err(error) => self.refused.push((path, Refusal::Unreadable(error))),
                }
            } else {
                log::info!("{}: left out, is no .npy file", path.display());
            }
        }
    }

    fn add_file(&mut self, path: PathBuf, metadata: fs::Metadata, name: Option<String>) {
        match name {
            _ if !metadata.is_file() => self.refused.push((path, Refusal::NotAFile)),
            None => self.refused.push((path, Refusal::NameNotUtf8)),
            Some(name) => self.files.push(File { path, name, len: metadata.len() }),
        }
    }

    /// Of files that lead to one name, keeps the first.
    fn refuse_shared_names(&mut self) {
        let mut firsts: HashMap<String, PathBuf> = HashMap::new();
        for file in std::mem::take(&mut self.files) {
            match firsts.get(&file.name) {
                Some(first) => {
                    let refusal = Refusal::SharedName { name: file.name, first: first.clone() };
                    self.refused.push((file.path, refusal));
                }
                None => {
                    firsts.insert(file.name.clone(), file.path.clone());
                    self.files.push(file);
                }
            }
        }
    }
}

fn is_npy(file_name: &OsStr) -> bool {
    file_name.as_encoded_bytes().ends_with(names::SUFFIX.as_bytes())
}

/// The last part of the array name that a file name leads to; `None` if the file name is not text.
///
/// What a mount or `export` had to escape gets its own name back; other files are named as they are.
fn array_name(file_name: &OsStr) -> Option<String> {
    let name = file_name.to_str()?;
    let decoded = names::decode(name, FileKind::File);
    Some(decoded.unwrap_or_else(|| name.strip_suffix(names::SUFFIX).unwrap_or(name).to_owned()))
}

/// The part of the array name that a folder's name leads to.
fn group_name(file_name: &OsStr) -> Option<String> {
    let name = file_name.to_str()?;
    Some(names::decode(name, FileKind::Directory).unwrap_or_else(|| name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_export_writes_them() {
        for (file, name) in [
            ("a.npy", "a"),
            ("a", "a"),
            ("%2E%2E.npy", ".."),
            ("%00.npy", ""),
            ("100%.npy", "100%"),
            ("%41.npy", "%41"),
        ] {
            assert_eq!(array_name(OsStr::new(file)).as_deref(), Some(name));
        }
        assert_eq!(group_name(OsStr::new("%2E%2E")).as_deref(), Some(".."));
        assert_eq!(group_name(OsStr::new("plain")).as_deref(), Some("plain"));
    }
}
