//! `npkfs export`: arrays out of a store, as `.npy` files. A file gets its name when it is complete; what is there is
//! never half an array.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::fs::{FileKind, names};
use crate::store::{Access, Array, Store, StoreError};

use super::config::ExportConfig;
use super::error::{CliError, store_exit};
use super::exit::Exit;
use super::output;
use super::progress::Progress;
use super::select;

/// Bytes that are copied between two moves of the progress bar.
const CHUNK_LEN: u64 = 8 * 1024 * 1024;

pub fn export(config: &ExportConfig) -> Result<(), CliError> {
    let store = Store::open(&config.store, Access::Read)?;
    let arrays = select::arrays(&store, &config.names)?;
    fs::create_dir_all(&config.dest).map_err(CliError::io("create", &config.dest))?;

    let n_bytes = arrays.iter().map(Array::npy_len).sum();
    let mut progress = Progress::new(n_bytes, !config.quiet);
    let mut n_failed = 0;
    let mut exit = Exit::Failed;
    for array in &arrays {
        progress.start(array.name());
        if let Err(failure) = write_array(array, config, &progress) {
            match failure {
                Failure::Store(error @ (StoreError::DataFile { .. } | StoreError::Format { .. })) => {
                    exit = store_exit(&error);
                    progress.message(&error.to_string());
                }
                Failure::Store(error) => return Err(error.into()),
                Failure::Dest(error) if error.kind() == io::ErrorKind::StorageFull => {
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
        return Err(CliError::Partly {
            what: "arrays were not exported",
            n_failed,
            n_asked: arrays.len(),
            exit,
        });
    }
    if !config.quiet {
        output::message(&format!(
            "{}: exported {}, {}",
            config.dest.display(),
            output::count(arrays.len(), "array"),
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
    let folder = path.parent().unwrap_or(&config.dest);
    if !config.overwrite && fs::symlink_metadata(&path).is_ok() {
        return Err(Failure::Exists(path));
    }
    fs::create_dir_all(folder)?;
    let mut unfinished = Unfinished::create(folder)?;
    copy(array, &mut unfinished.file, progress)?;
    if let Ok(modified) = array.modified() {
        unfinished.file.set_modified(modified)?;
    }
    unfinished.finish(&path, config.overwrite)
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
fn copy(array: &Array, file: &mut File, progress: &Progress) -> Result<(), Failure> {
    let len = array.npy_len();
    let mut buf = Vec::new();
    let mut offset = 0;
    let mut copy_until = |end: u64, file: &mut File, offset: &mut u64| -> Result<(), Failure> {
        while *offset < end {
            buf.resize(usize::try_from((end - *offset).min(CHUNK_LEN)).unwrap_or(usize::MAX), 0);
            let n = array.read_npy_at(*offset, &mut buf)?;
            if n == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            file.write_all(&buf[..n])?;
            *offset += n as u64;
            progress.at(*offset);
        }
        Ok(())
    };
    copy_until(array.header_len().min(len), file, &mut offset)?;
    match array.backing()? {
        Some(backing) => copy_file(backing, file, offset, len, progress),
        None => copy_until(len, file, &mut offset),
    }
}

fn copy_file(
    backing: BorrowedFd<'_>,
    file: &mut File,
    start: u64,
    end: u64,
    progress: &Progress,
) -> Result<(), Failure> {
    let mut source = File::from(backing.try_clone_to_owned()?);
    let mut offset = start;
    while offset < end {
        // Only this loop uses the position of the array's file: the store reads at offsets.
        source.seek(SeekFrom::Start(offset))?;
        let n = io::copy(&mut io::Read::take(&source, (end - offset).min(CHUNK_LEN)), file)?;
        if n == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        offset += n;
        progress.at(offset);
    }
    Ok(())
}

/// A file that is removed again unless it is finished.
struct Unfinished {
    path: PathBuf,
    file: File,
    finished: bool,
}

impl Unfinished {
    /// Creates it in `folder`, under a name that no array leads to: it has no `.npy` at its end.
    fn create(folder: &Path) -> io::Result<Unfinished> {
        let pid = std::process::id();
        for attempt in 0_u32.. {
            let path = folder.join(format!(".npkfs-export-{pid}-{attempt}.part"));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Unfinished { path, file, finished: false }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Gives the file its name.
    fn finish(mut self, path: &Path, overwrite: bool) -> Result<(), Failure> {
        if !overwrite {
            // A link, unlike a rename, never replaces what came in between.
            match fs::hard_link(&self.path, path) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(Failure::Exists(path.to_owned()));
                }
                // A file system without links: the name was free a moment ago.
                Err(_) => {}
            }
        }
        fs::rename(&self.path, path)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
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
