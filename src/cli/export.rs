//! `npkfs export`: arrays out of a store, as `.npy` files. A file gets its name when it is complete; what is there is
//! never half an array.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::fs::{FileKind, names};
use crate::store::{Access, Array, Store, StoreError};
use crate::sys::{DirStorage, Storage as _, StorageFile};

use super::config::ExportConfig;
use super::error::{CliError, store_exit};
use super::exit::Exit;
use super::output;
use super::progress::Progress;
use super::select::Catalog;

/// Bytes that are copied between two moves of the progress bar.
const CHUNK_LEN: u64 = 8 * 1024 * 1024;

pub fn export(config: &ExportConfig) -> Result<(), CliError> {
    let store = Store::open(&config.store, Access::Read)?;
    let arrays = Catalog::read(&store)?.chosen(&config.names)?;
    fs::create_dir_all(&config.dest).map_err(CliError::io("create", &config.dest))?;

    let n_bytes = arrays.iter().map(Array::npy_len).sum();
    let mut progress = Progress::new(n_bytes, !config.quiet);
    let mut n_failed = 0;
    let mut exit = Exit::Failed;
    let n_asked = arrays.len();
    // By value: an array that was read keeps its data file open.
    for array in arrays {
        let array = &array;
        progress.start(array.name());
        if let Err(failure) = write_array(array, config, &progress) {
            match failure {
                // The others are not damaged.
                Failure::Store(error) if store_exit(&error) == Exit::Damaged => {
                    exit = Exit::Damaged;
                    progress.message(&error.to_string());
                }
                Failure::Store(error) => return Err(error.into()),
                Failure::Dest(error)
                    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
                {
                    return Err(CliError::Io {
                        action: "write to",
                        path: config.dest.clone(),
                        source: error,
                    });
                }
                failure => progress.message(&format!("array {:?}: not exported: {failure}", array.name())),
            }
            n_failed += 1;
        }
        progress.end(array.npy_len());
    }
    drop(progress);
    if n_failed > 0 {
        return Err(CliError::Partly { what: "arrays were not exported", n_failed, n_asked, exit });
    }
    if !config.quiet {
        output::message(&format!(
            "{}: exported {}, {}",
            config.dest.display(),
            output::count(n_asked, "array"),
            output::size(n_bytes)
        ));
    }
    Ok(())
}

/// Why an array was not exported.
enum Failure {
    /// The file exists.
    Exists(PathBuf),
    Store(StoreError),
    Dest(io::Error),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Exists(path) => write!(f, "{} exists already; --overwrite replaces it", path.display()),
            Failure::Store(error) => error.fmt(f),
            Failure::Dest(error) => error.fmt(f),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::Store(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Dest(error)
    }
}

fn write_array(array: &Array, config: &ExportConfig, progress: &Progress) -> Result<(), Failure> {
    let path = config.dest.join(relative_path(array.name()));
    let (folder, file_name) = split(&path);
    if !config.overwrite && fs::symlink_metadata(&path).is_ok() {
        return Err(Failure::Exists(path));
    }
    // The storage that stores use gives files their names when they are complete, and leaves nothing when killed.
    let folder = DirStorage::create(folder)?;
    let file = folder.create_unnamed()?;
    copy(array, &*file, progress)?;
    file.set_times(None, Some(array.modified()?))?;
    if config.overwrite {
        folder.replace(&file, file_name)?;
        return Ok(());
    }
    match folder.link(&file, file_name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Failure::Exists(path)),
        result => Ok(result?),
    }
}

/// The folder and the name of a file that [`relative_path`] led to.
fn split(path: &Path) -> (&Path, &str) {
    let file_name = path.file_name().and_then(OsStr::to_str).expect("the last part is an array's file name");
    (path.parent().expect("is below the destination"), file_name)
}

/// The file of an array below the destination: named as in the mount, where no name leads elsewhere.
fn relative_path(name: &str) -> PathBuf {
    let (groups, last) = name.rsplit_once('/').map_or((None, name), |(groups, last)| (Some(groups), last));
    let mut path = PathBuf::new();
    for group in groups.into_iter().flat_map(|groups| groups.split('/')) {
        path.push(names::encode(group, FileKind::Directory, 0));
    }
    path.push(names::encode(last, FileKind::File, 0));
    path
}

/// Copies the array as the `.npy` file that the mount shows.
///
/// The header comes from the array's record: the one in the data file may grow meanwhile. The elements of a file that
/// is the array byte for byte are left to the kernel, which may share blocks instead of copying them.
fn copy(array: &Array, file: &dyn StorageFile, progress: &Progress) -> Result<(), Failure> {
    let len = array.npy_len();
    let header = array.npy_header()?;
    file.write_at(&header, 0)?;
    let backing = array.backing()?;
    let mut offset = header.len() as u64;
    let mut buf = Vec::new();
    while offset < len {
        let chunk = (len - offset).min(CHUNK_LEN);
        let n = match backing {
            Some(backing) => file.copy_from(backing, offset, offset, chunk)?,
            None => {
                buf.resize(usize::try_from(chunk).expect("a chunk fits into memory"), 0);
                // On all cores, where the elements are compressed.
                array.read_elements_at(offset - header.len() as u64, &mut buf)?;
                file.write_at(&buf, offset)?;
                chunk
            }
        };
        if n == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        offset += n;
        progress.at(offset);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_destination() {
        for (name, path) in [
            ("a", "a.npy"),
            ("a/b", "a/b.npy"),
            ("", "%00.npy"),
            ("/etc/passwd", "%00/etc/passwd.npy"),
            ("../x", "%2E%2E/x.npy"),
            ("a/../../x", "a/%2E%2E/%2E%2E/x.npy"),
            ("a//b", "a/%00/b.npy"),
            ("a/.", "a/%2E.npy"),
            ("..", "%2E%2E.npy"),
        ] {
            assert_eq!(relative_path(name), Path::new(path), "{name:?}");
        }
    }
}
