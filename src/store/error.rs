//! What can go wrong with a store, with the names, numbers and next steps that a person needs.

use std::error::Error;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::codec::CodecError;
use crate::format::upstream::{self, TableLayout};
use crate::format::{Dtype, FormatError};
use crate::sys::WithRemedy;
use crate::sys::lock::Holder;

/// An error of [`Store`](super::Store) or [`Array`](super::Array).
///
/// `store` is the path that the store was opened with.
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// No array has this name.
    NotFound {
        /// The store.
        store: PathBuf,
        /// The name asked for.
        array: String,
    },
    /// An array has this name already.
    Exists {
        /// The store.
        store: PathBuf,
        /// The name.
        array: String,
    },
    /// There is no store at this path.
    NotAStore {
        /// The path.
        path: PathBuf,
        /// What is there instead.
        found: NotAStore,
    },
    /// A store is at the path where one was to be created.
    StoreExists {
        /// The path.
        path: PathBuf,
    },
    /// The store was opened for reading only.
    ReadOnly {
        /// The store.
        store: PathBuf,
    },
    /// The store was written by NumPack 0.1 to 0.7, and is only read.
    OldLayout {
        /// The store.
        store: PathBuf,
        /// Its layout.
        layout: TableLayout,
    },
    /// NumPack 0.1 to 0.7 wrote to a store while it was upgraded.
    ChangedMeanwhile {
        /// The file that changed.
        path: PathBuf,
    },
    /// Another process holds the writers' lock.
    Locked {
        /// The store.
        store: PathBuf,
        /// How long this process waited for it.
        waited: Duration,
        /// Who holds it, where that can be seen.
        holder: Option<Holder>,
    },
    /// The wait for a lock was cut short; nothing was done.
    Interrupted {
        /// The store.
        store: PathBuf,
    },
    /// The bytes of a file do not follow the format.
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        source: FormatError,
    },
    /// A data file is missing, shorter than the manifest says, or of another inode type.
    DataFile {
        /// The store.
        store: PathBuf,
        /// The array.
        array: String,
        /// The data file.
        file: String,
        /// What is wrong with it.
        what: DataFileFault,
    },
    /// A block of a compressed array, or a page of its index, is damaged.
    Block {
        /// The store.
        store: PathBuf,
        /// The array.
        array: String,
        /// The data file.
        file: String,
        /// The number of the block, or of one that the page leads to.
        block: u64,
        /// Offset of the block or page in the data file, in bytes.
        offset: u64,
        /// What is wrong with it. Boxed, so that results stay small.
        what: Box<BlockFault>,
    },
    /// The rows given do not have the shape of the array's rows.
    ShapeMismatch {
        /// The array.
        array: String,
        /// The shape of the rows given.
        found: Vec<u64>,
        /// The shape of the array.
        expected: Vec<u64>,
    },
    /// The rows given do not have the dtype of the array.
    DtypeMismatch {
        /// The array.
        array: String,
        /// The dtype of the rows given.
        found: Dtype,
        /// The dtype of the array.
        expected: Dtype,
    },
    /// The number of rows given is not the number of rows to change.
    RowCount {
        /// The array.
        array: String,
        /// Rows given.
        found: u64,
        /// Rows to change.
        expected: u64,
    },
    /// A row number is not below the number of rows.
    IndexOutOfRange {
        /// The array.
        array: String,
        /// The row number.
        index: u64,
        /// Rows that the array has.
        n_rows: u64,
    },
    /// The operation needs rows, and a 0-d array has none.
    NoRows {
        /// The array.
        array: String,
    },
    /// A buffer does not have the length of what it is for.
    BufferLen {
        /// The array.
        array: String,
        /// Bytes of the buffer.
        found: u64,
        /// Bytes needed.
        expected: u64,
    },
    /// A write through the virtual `.npy` file would change its header.
    HeaderWrite {
        /// The array.
        array: String,
        /// Length of the header, in bytes.
        header_len: u64,
    },
    /// A write through the virtual `.npy` file reaches past its end.
    OutOfBounds {
        /// The array.
        array: String,
        /// The bytes to be written.
        range: Range<u64>,
        /// Length of the virtual file, in bytes.
        len: u64,
    },
    /// A name, dtype or shape that no array in a store can have.
    Refused {
        /// What is wrong with it.
        source: FormatError,
    },
    /// The operating system refused.
    Io {
        /// What was attempted, as in "cannot ACTION PATH".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An earlier write to the manifest or a sync failed, so nothing is known to be on the disk any more.
    Poisoned {
        /// The store.
        store: PathBuf,
        /// The first failure.
        first: Arc<StoreError>,
    },
}

/// What is at a path that holds no store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotAStore {
    /// Nothing.
    Missing,
    /// A file, or something else that is no directory.
    NotADirectory,
    /// A directory without a manifest.
    NoManifest,
    /// A directory with data files, but without a manifest.
    ManifestLost,
    /// A directory with data files of NumPack 0.1 to 0.7, whose table has no array.
    TableLost,
    /// An npk store whose manifest was replaced by NumPack 0.1 to 0.7.
    Overwritten,
    /// A directory without a manifest whose data files do not say what is in them.
    NothingLeft,
}

/// What is wrong with a data file.
#[derive(Debug)]
#[non_exhaustive]
pub enum DataFileFault {
    /// It is not there.
    Missing,
    /// It is shorter than the manifest says.
    Short {
        /// Its length in bytes.
        found: u64,
        /// The length that is committed.
        expected: u64,
    },
    /// It is longer than the table of NumPack 0.1 to 0.7 says.
    Long {
        /// Its length in bytes.
        found: u64,
        /// The length in the table.
        expected: u64,
    },
    /// It does not fit what else is known of an array of NumPack 0.1 to 0.7.
    Upstream(upstream::Fault),
    /// It is a symbolic link, a folder, or something else that is no regular file.
    NotAFile,
    /// Its header does not describe the array that the manifest describes.
    Header(Option<FormatError>),
}

/// What is wrong with a block, or with a page of the index that leads to it.
#[derive(Debug)]
#[non_exhaustive]
pub enum BlockFault {
    /// Its bytes do not have the checksum that the index or the manifest has.
    Checksum {
        /// The checksum of the bytes.
        found: u32,
        /// The checksum that they should have.
        expected: u32,
    },
    /// The file ends within it.
    Short {
        /// Bytes that are there.
        found: u64,
        /// Bytes that should be.
        expected: u64,
    },
    /// It cannot be decoded.
    Codec(CodecError),
    /// The index is wrong, although it has the right checksum.
    Index(&'static str),
}

impl fmt::Display for BlockFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checksum { found, expected } => {
                write!(f, "has crc32 {found:#010x}, expected {expected:#010x}")
            }
            Self::Short { found, expected } => {
                write!(f, "has {found} bytes before the end of the file, expected {expected}")
            }
            Self::Codec(source) => write!(f, "cannot be decoded: {source}"),
            Self::Index(what) => write!(f, "is behind an index that {what}"),
        }
    }
}

impl fmt::Display for DataFileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "is missing"),
            Self::Short { found, expected } | Self::Long { found, expected } => {
                write!(f, "has {found} bytes, expected {expected}")
            }
            Self::Upstream(what) => write!(f, "{what}"),
            Self::NotAFile => write!(f, "is not a regular file, and links are not followed"),
            Self::Header(None) => write!(f, "has a header that describes another array"),
            Self::Header(Some(source)) => write!(f, "has a damaged header: {source}"),
        }
    }
}

impl StoreError {
    /// Makes an `Io` error of a file within a directory.
    pub(super) fn io(action: &'static str, dir: &Path, file: &str, source: io::Error) -> Self {
        let path = if file.is_empty() { dir.to_owned() } else { dir.join(file) };
        Self::Io { action, path, source }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound { store, array } => {
                write!(f, "{}: array {array:?} does not exist", store.display())
            }
            Self::Exists { store, array } => {
                write!(f, "{}: array {array:?} already exists", store.display())
            }
            Self::NotAStore { path, found } => {
                let path = path.display();
                match found {
                    NotAStore::Missing => write!(
                        f,
                        "{path}: no such directory; create a store with \"npkfs import FILE.npy {path}\""
                    ),
                    NotAStore::NotADirectory => {
                        write!(f, "{path}: is not a directory, and an npk store is one")
                    }
                    NotAStore::NoManifest => {
                        write!(f, "{path}: is not an npk store: it has no metadata.npkm")
                    }
                    NotAStore::ManifestLost => write!(
                        f,
                        "{path}: has data files but no metadata.npkm; \"npkfs repair {path}\" makes it anew; or move the data files away to start anew"
                    ),
                    NotAStore::NothingLeft => write!(
                        f,
                        "{path}: metadata.npkm is lost, and no data file says what is in it; restore metadata.npkm from a backup"
                    ),
                    NotAStore::TableLost => write!(
                        f,
                        "{path}: metadata.npkm lists no array, but there are data files: NumPack 0.2.1-0.7 replaces a table that it cannot read by an empty one; restore metadata.npkm from a backup, or move the data files away"
                    ),
                    NotAStore::Overwritten => write!(
                        f,
                        "{path}: metadata.npkm was replaced by NumPack 0.1-0.7; \"npkfs repair {path}\" restores the store from metadata.npkm.bak"
                    ),
                }
            }
            Self::StoreExists { path } => write!(f, "{}: a store is already there", path.display()),
            Self::ReadOnly { store } => {
                write!(f, "{}: the store is opened for reading only", store.display())
            }
            Self::OldLayout { store, layout } => write!(
                f,
                "{}: the store has the layout of NumPack {layout}, which is only read; run \"npkfs upgrade {}\", or call numpack.upgrade in Python",
                store.display(),
                store.display()
            ),
            Self::ChangedMeanwhile { path } => write!(
                f,
                "{}: was changed while the store was upgraded; end the programs that have it open with NumPack 0.1-0.7, and try again",
                path.display()
            ),
            Self::Locked { store, waited, holder } => {
                write!(
                    f,
                    "{}: in use: waited {:.1} s for the writers' lock",
                    store.display(),
                    waited.as_secs_f64()
                )?;
                match holder {
                    Some(Holder::Process(pid)) => {
                        write!(f, ", which process {pid} holds; try again when it is done")
                    }
                    Some(Holder::Host(host, claim)) => write!(
                        f,
                        ", which host {host} holds; try again when it is done, or, if nothing writes to the store there \
                         any more, remove {}",
                        claim.display()
                    ),
                    None => write!(f, ", which another process holds; try again when it is done"),
                }
            }
            Self::Interrupted { store } => {
                write!(f, "{}: in use: the wait for other writers was interrupted", store.display())
            }
            Self::Format { path, source } => write!(
                f,
                "{}: {source}; run \"npkfs verify {}\"",
                path.display(),
                path.parent().unwrap_or(path).display()
            ),
            Self::DataFile { store, array, file, what } => {
                let store = store.display();
                write!(f, "{store}: array {array:?}: data file {file} {what}; run \"npkfs verify {store}\"")
            }
            Self::Block { store, array, file, block, offset, what } => write!(
                f,
                "{}: array {array:?}: block {block} at byte {offset} of {file} {what}; run \"npkfs verify {}\"",
                store.display(),
                store.display()
            ),
            Self::ShapeMismatch { array, found, expected } => {
                write!(
                    f,
                    "array {array:?}: rows of shape {found:?} do not fit the array's shape {expected:?}"
                )?;
                if found.len() != expected.len() {
                    write!(f, ": {} dimensions, expected {}", found.len(), expected.len())
                } else {
                    write!(f, ": only the first dimension may differ")
                }
            }
            Self::DtypeMismatch { array, found, expected } => write!(
                f,
                "array {array:?}: dtype {found} is not the array's dtype {expected}; convert with astype first"
            ),
            Self::RowCount { array, found, expected } => {
                write!(f, "array {array:?}: {found} rows given for {expected} indexes")
            }
            Self::IndexOutOfRange { array, index, n_rows } => {
                write!(f, "array {array:?}: row {index} is out of range for {n_rows} rows")
            }
            Self::NoRows { array } => {
                write!(f, "array {array:?} is 0-d and has no rows; save it anew to change it")
            }
            Self::BufferLen { array, found, expected } => {
                write!(f, "array {array:?}: a buffer of {found} bytes was given, expected {expected}")
            }
            Self::HeaderWrite { array, header_len } => write!(
                f,
                "array {array:?}: a write would change the first {header_len} bytes, the .npy header, which follows the array"
            ),
            Self::OutOfBounds { array, range, len } => write!(
                f,
                "array {array:?}: bytes {}..{} are past the end of {len} bytes; append rows instead",
                range.start, range.end
            ),
            Self::Refused { source } => source.fmt(f),
            Self::Io { action, path, source } => {
                write!(f, "cannot {action} {}: {}", path.display(), WithRemedy(source))
            }
            Self::Poisoned { store, first } => write!(
                f,
                "{}: not written, because an earlier write failed: {first}; reopen the store",
                store.display()
            ),
        }
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Format { source, .. } | Self::Refused { source } => Some(source),
            Self::DataFile { what: DataFileFault::Header(Some(source)), .. } => Some(source),
            Self::Block { what, .. } => match &**what {
                BlockFault::Codec(source) => Some(source),
                BlockFault::Checksum { .. } | BlockFault::Short { .. } | BlockFault::Index(_) => None,
            },
            Self::Io { source, .. } => Some(source),
            Self::Poisoned { first, .. } => Some(&**first),
            _ => None,
        }
    }
}

impl From<FormatError> for StoreError {
    fn from(source: FormatError) -> Self {
        Self::Refused { source }
    }
}
