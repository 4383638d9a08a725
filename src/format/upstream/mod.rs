//! What NumPack 0.1 to 0.7 wrote: tables of arrays, files of deleted rows, lists of segments. Only read.
//!
//! The statement of these layouts in words is `spec/upstream-layouts.md`. None of them has a checksum, so what two
//! parts of a store say is compared wherever they say the same.

mod binary;
mod deleted;
mod msgpack;
mod segments;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

pub use deleted::{deleted_file, deleted_file_len, parse_deleted};
pub use segments::{MAX_SEGMENTS_LEN, Segment, parse_segments};

use super::{Descr, Dtype, FormatError, Layout, names};

/// What the files of a store are called besides those that the npk format has.
pub const WRITE_AHEAD_LOG: &str = "metadata.wal";
/// What the Python backends locked.
pub const SAVE_LOCK: &str = "save.lock";
/// A copy of the table of a store that is being upgraded, until its files are removed.
pub const OLD_TABLE: &str = "metadata.npkm.upgraded";

const DATA_PREFIX: &str = "data_";
const DATA_SUFFIX: &str = ".npkd";
const SEGMENTS_SUFFIX: &str = ".npkseg";

/// The dtypes by their numbers; `None`: the layout has no such number.
const DTYPES: [Option<&str>; 14] = [
    Some("|b1"),
    Some("|u1"),
    Some("<u2"),
    Some("<u4"),
    Some("<u8"),
    Some("|i1"),
    Some("<i2"),
    Some("<i4"),
    Some("<i8"),
    Some("<f2"),
    Some("<f4"),
    Some("<f8"),
    Some("<c8"),
    Some("<c16"),
];
/// The same in 0.1, which had neither half-precision nor complex numbers.
const DTYPES_0_1: [Option<&str>; 11] = [
    Some("|b1"),
    Some("|u1"),
    Some("<u2"),
    Some("<u4"),
    Some("<u8"),
    Some("|i1"),
    Some("<i2"),
    Some("<i4"),
    Some("<i8"),
    Some("<f4"),
    Some("<f8"),
];
/// The same in 0.2.0 without its Rust extension.
const DTYPES_0_2_0_PYTHON: [Option<&str>; 15] = [
    None,
    Some("|i1"),
    Some("<i2"),
    Some("|u1"),
    Some("<u2"),
    Some("<u4"),
    Some("<u8"),
    Some("<i4"),
    Some("<i8"),
    Some("<f2"),
    Some("<f4"),
    Some("<f8"),
    Some("|b1"),
    Some("<c8"),
    Some("<c16"),
];

/// The layout of a table, named after the releases that wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableLayout {
    /// bincode, as 0.1 and 0.2.0 wrote it.
    Bincode,
    /// What 0.2.0 wrote without its Rust extension.
    BincodePython,
    /// MessagePack, as 0.2.1 wrote it.
    MessagePack,
    /// `NPKB`, as 0.3 to 0.7 wrote it.
    Npkb,
}

impl fmt::Display for TableLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bincode => "0.1-0.2.0",
            Self::BincodePython => "0.2.0 (Python)",
            Self::MessagePack => "0.2.1",
            Self::Npkb => "0.3-0.7",
        })
    }
}

/// The table of a store.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Its layout.
    pub layout: TableLayout,
    /// The arrays, in its order.
    pub arrays: Vec<Entry>,
}

/// One array of a table: as it is stored, with its deleted rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The name.
    pub name: Arc<str>,
    /// The data file, or the list of segments: a plain name within the store's folder.
    pub file: Arc<str>,
    /// The dtype.
    pub dtype: Dtype,
    /// The stored elements.
    pub layout: Layout,
    /// Time of the last change, in nanoseconds since 1970.
    pub modified: i64,
    /// Why its elements cannot be read, if that shows in the table.
    pub fault: Option<Fault>,
}

/// What was wrong with the files of an array when the table was read, and so keeps its elements from being read.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// The file, and what is wrong with it.
    pub fault: Option<(Arc<str>, Fault)>,
}

/// What is wrong with one array, or with a file of it. The others can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// A file is not there.
    Missing,
    /// A file is a link, a folder, or something else that is no regular file.
    NotAFile,
    /// A file has another length than it should.
    Len {
        /// Its length in bytes.
        found: u64,
        /// The length that it should have.
        expected: u64,
    },
    /// The size in the table is not that of the shape and dtype in the table.
    Size {
        /// The size.
        found: u64,
        /// Bytes that the shape needs.
        expected: u64,
    },
    /// The array is compressed.
    Compressed,
    /// The file of deleted rows is about another number of rows.
    DeletedOf {
        /// The number of rows that it counts.
        found: u64,
        /// The number in the table.
        expected: u64,
    },
    /// The bits of the file of deleted rows are not those that its header counts.
    DeletedCount {
        /// Deleted rows as its header says.
        found: u64,
        /// Deleted rows as its bits say.
        bits: u64,
    },
    /// Bits are set behind the last row.
    DeletedBehind,
    /// The list of segments does not decode.
    Segments {
        /// What is wrong with it.
        what: String,
    },
    /// A segment is outside of the store.
    SegmentFile {
        /// The file's name.
        file: String,
    },
    /// The segments are not as long as the array, all together.
    SegmentsLen {
        /// Bytes of them.
        found: u64,
        /// Bytes of the array.
        expected: u64,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is missing"),
            Self::NotAFile => f.write_str("is not a regular file, and links are not followed"),
            Self::Len { found, expected } => write!(f, "has {found} bytes, expected {expected}"),
            Self::Size { found, expected } => {
                write!(f, "is {found} bytes long in metadata.npkm, and its shape needs {expected}")
            }
            Self::Compressed => f.write_str("is compressed in a way that no release of NumPack wrote"),
            Self::DeletedOf { found, expected } => {
                write!(f, "counts {found} rows, metadata.npkm {expected}")
            }
            Self::DeletedCount { found, bits } => {
                write!(f, "says that {found} rows are deleted, and its bits that {bits} are")
            }
            Self::DeletedBehind => f.write_str("has bits behind its last row"),
            Self::Segments { what } => write!(f, "is no list of segments: {what}"),
            Self::SegmentFile { file } => {
                write!(f, "names the segment {file}, which is outside of the store")
            }
            Self::SegmentsLen { found, expected } => write!(f, "lists {found} bytes, expected {expected}"),
        }
    }
}

/// An array as a table has it, before anything of it is checked.
#[derive(Debug, Default)]
struct RawEntry {
    name: String,
    shape: Vec<u64>,
    file: String,
    /// In the unit of the layout.
    modified: u64,
    size: u64,
    dtype: u64,
    is_compressed: bool,
}

/// Whether these are the first bytes of a table of NumPack 0.1 to 0.7.
pub fn is_table(bytes: &[u8]) -> bool {
    bytes.starts_with(binary::NPKB_MAGIC)
        || bytes.starts_with(&binary::BINCODE_VERSION.to_le_bytes())
        || matches!(bytes.first(), Some(0x80..=0x8f | 0xde | 0xdf))
}

/// Reads a table for which [`is_table`] is true.
///
/// # Errors
/// `Upstream` if it does not decode, or has an array that cannot be.
pub fn parse_table(bytes: &[u8]) -> Result<Table, FormatError> {
    if bytes.starts_with(binary::NPKB_MAGIC) {
        return parse_as(TableLayout::Npkb, bytes);
    }
    if !bytes.starts_with(&binary::BINCODE_VERSION.to_le_bytes()) {
        return parse_as(TableLayout::MessagePack, bytes);
    }
    // Both begin alike. Where one has the number of a dtype, the other has the length of a file's name, and no file's
    // name begins as the next bytes do.
    match parse_as(TableLayout::Bincode, bytes) {
        Ok(table) => Ok(table),
        Err(error) => parse_as(TableLayout::BincodePython, bytes).map_err(|_| error),
    }
}

fn parse_as(layout: TableLayout, bytes: &[u8]) -> Result<Table, FormatError> {
    let wrong = |what| FormatError::Upstream { layout, what };
    let raw = match layout {
        TableLayout::Bincode => binary::parse_bincode(bytes),
        TableLayout::BincodePython => binary::parse_bincode_python(bytes),
        TableLayout::MessagePack => msgpack::parse(bytes),
        TableLayout::Npkb => binary::parse_npkb(bytes),
    };
    let raw = raw.map_err(wrong)?;
    let (dtypes, nanos): (&[_], u64) = match layout {
        TableLayout::Bincode if raw.iter().any(is_of_0_1) => (&DTYPES_0_1, 1_000_000_000),
        TableLayout::Bincode => (&DTYPES, 1_000_000_000),
        TableLayout::BincodePython => (&DTYPES_0_2_0_PYTHON, 1000),
        TableLayout::MessagePack | TableLayout::Npkb => (&DTYPES, 1000),
    };
    let mut seen = HashSet::with_capacity(raw.len());
    if let Some(twice) = raw.iter().find(|entry| !seen.insert(&*entry.name)) {
        return Err(wrong(format!("array {:?}: is there twice", twice.name)));
    }
    let arrays = raw.into_iter().map(|entry| {
        let name = entry.name.clone();
        check(entry, dtypes, nanos).map_err(|what| wrong(format!("array {name:?}: {what}")))
    });
    Ok(Table { layout, arrays: arrays.collect::<Result<_, _>>()? })
}

/// Whether an array has a dtype and size that only 0.1 can have given it.
fn is_of_0_1(entry: &RawEntry) -> bool {
    let nbytes = |dtypes: &[Option<&'static str>]| {
        let dtype = dtype_of(dtypes, entry.dtype).ok()?;
        Some(Layout::new(&dtype, &entry.shape, false).ok()?.nbytes())
    };
    matches!(entry.dtype, 9 | 10) && entry.size != 0 && nbytes(&DTYPES_0_1) == Some(entry.size)
}

fn dtype_of(dtypes: &[Option<&str>], number: u64) -> Result<Dtype, String> {
    let typestring = usize::try_from(number).ok().and_then(|number| *dtypes.get(number)?);
    let typestring = typestring.ok_or_else(|| format!("dtype {number} is not known"))?;
    Dtype::from_descr(Descr::Scalar(typestring.to_owned())).map_err(|error| error.to_string())
}

/// Checks that there can be such an array.
fn check(entry: RawEntry, dtypes: &[Option<&str>], nanos: u64) -> Result<Entry, String> {
    names::check(&entry.name).map_err(|error| error.to_string())?;
    if !is_data_file(&entry.file) {
        return Err(format!("{:?} is not the name of a data file within the store", entry.file));
    }
    let dtype = dtype_of(dtypes, entry.dtype)?;
    let layout = Layout::new(&dtype, &entry.shape, false).map_err(|error| error.to_string())?;
    if layout.nbytes() > MAX_NBYTES {
        return Err("does not fit a file".to_owned());
    }
    let fault = if entry.is_compressed {
        Some(Fault::Compressed)
    } else {
        let (found, expected) = (entry.size, layout.nbytes());
        (found != expected).then_some(Fault::Size { found, expected })
    };
    let modified = i64::try_from(entry.modified.saturating_mul(nanos)).unwrap_or(i64::MAX);
    Ok(Entry { name: entry.name.into(), file: entry.file.into(), dtype, layout, modified, fault })
}

/// With its header, no array may be longer than a file can be.
const MAX_NBYTES: u64 = (1 << 63) - (1 << 21);

/// Whether `file` is a name that data files and lists of segments have.
pub fn is_data_file(file: &str) -> bool {
    let is_plain = file.len() <= 255 && !file.bytes().any(|byte| byte == b'/' || byte == 0);
    is_plain
        && file.starts_with(DATA_PREFIX)
        && (file.ends_with(DATA_SUFFIX) || file.ends_with(SEGMENTS_SUFFIX))
}

/// Whether `file`, for which [`is_data_file`] is true, is a list of segments.
pub fn is_segmented(file: &str) -> bool {
    file.ends_with(SEGMENTS_SUFFIX)
}

#[cfg(test)]
mod tests;
